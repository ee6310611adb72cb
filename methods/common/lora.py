"""LoRA: low-rank updates of frozen linear layers, merged into the weights after training (Hu et al. 2021, arXiv 2106.09685)."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.models.linear import is_linear, weight_of

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

SCALE = 2.0
"""α / r of the paper with α = 2r, so that the scale of the updates does not depend on the rank."""


def block_linears(model: "LoadedModel") -> list[nn.Module]:
    """All linear layers of all blocks (attention and feed-forward), excluding the output head."""
    parts = (part for layer in range(model.n_layers) for part in model.block(layer).modules())
    return [part for part in parts if is_linear(part)]


class Update(nn.Module):
    """The update of one linear layer: x ↦ SCALE · B A x, initially zero.

    Attributes:
        A_RI: rank × inputs, Kaiming-uniform.
        B_OR: outputs × rank, zero.
    """

    def __init__(self, linear: nn.Module, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        weight_OI = weight_of(linear)
        drawn_RI = nn.init.kaiming_uniform_(torch.empty(rank, weight_OI.shape[1]), a=5**0.5, generator=generator)
        zeros_OR = torch.zeros(len(weight_OI), rank)
        self.A_RI, self.B_OR = (
            nn.Parameter(each.to(weight_OI.device, weight_OI.dtype)) for each in (drawn_RI, zeros_OR)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Values to add to the layer's output, … × outputs."""
        return SCALE * nn.functional.linear(nn.functional.linear(inputs, self.A_RI), self.B_OR)


@contextmanager
def low_rank(linears: Iterable[nn.Module], rank: int, generator: torch.Generator) -> Iterator[list[nn.Parameter]]:
    """Attach a low-rank update to each layer and yield the parameters of all updates.

    On normal exit the updates are merged into the weights; after an exception the layers are unchanged. The rank may exceed
    a layer's dimensions; the update is then merely redundant.

    Args:
        linears: the layers; frozen weights get no gradient.
        rank: R.
        generator: draws A on the CPU.
    """
    updates = [(linear, Update(linear, rank, generator)) for linear in linears]
    handles = [linear.register_forward_hook(_adding(update)) for linear, update in updates]
    try:
        yield [parameter for _, update in updates for parameter in update.parameters()]
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        for linear, update in updates:
            weight_of(linear).add_(SCALE * update.B_OR @ update.A_RI)


def _adding(update: Update) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    return lambda linear, inputs, outputs: outputs + update(inputs[0]).to(outputs.dtype)
