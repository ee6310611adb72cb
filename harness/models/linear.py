"""Linear modules in one orientation: GPT-2 stores its matrices as inputs × outputs, all others as outputs × inputs."""

from typing import cast

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies its input by a matrix, and at most adds a bias."""
    return isinstance(module, (nn.Linear, Conv1D))


def weight_of(module: nn.Module) -> Tensor:
    """The matrix of a linear module, outputs × inputs: its parameter, or a transposed view of it."""
    weight = cast(nn.Parameter, module.weight)
    return weight.T if isinstance(module, Conv1D) else weight


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias of a linear module, or None."""
    return cast("Tensor | None", module.bias)
