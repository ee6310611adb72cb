"""The desired change of a matrix's output at each token of an edit: learned by a hypernetwork, or the normalised gradient."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.common import transforms
from methods.common.transforms import EditedMatrix, GradientTransforms, ScaledResidual

CHUNK_ROWS = 1024
"""Tokens that go through a network at a time."""


class Changes(GradientTransforms):
    """Turns the keys k and gradients u at N tokens into desired changes of a matrix's outputs.

    Its statistics go on over all edits (life-long normalisation). They are the only thing that editing changes.
    """

    @abstractmethod
    def changes(self, index: int, keys_NK: Tensor, gradients_ND: Tensor) -> Tensor:
        """Desired changes, N × D, of matrix number `index`."""

    @abstractmethod
    def ridge(self, index: int) -> float:
        """λ of the least-squares problem of matrix number `index`."""

    def statistics(self) -> dict[str, Tensor]:
        """Copies of the running statistics of all transforms."""
        return {name: value.clone() for name, value in self.named_buffers()}

    def set_statistics(self, statistics: Mapping[str, Tensor]) -> None:
        """Continue from the result of `statistics`."""
        for name, value in self.named_buffers():
            value.copy_(statistics[name])


class ShiftNetwork(Changes):
    """MALMEN's hypernetwork: d = -η_m (k·k̃) ũ, with pseudo keys k̃ and gradients ũ, a learned rate and a learned ridge.

    At first k̃ and ũ are the normalised k and u.

    Args:
        matrices: in the order of their rates.
        rank, layers: of the residual layers.
        edit_lr: initial edit rate.
        seed: seed of the initial weights; None if they are loaded afterwards.
    """

    residual: ClassVar[type[ScaledResidual]] = ScaledResidual

    def __init__(
        self, matrices: tuple[EditedMatrix, ...], rank: int, layers: int, edit_lr: float, seed: int | None
    ) -> None:
        super().__init__(matrices, rank, layers, seed)
        self.edit_lr_M = nn.Parameter(torch.full((len(matrices),), edit_lr))
        self.log_ridge_M = nn.Parameter(torch.zeros(len(matrices)))

    def changes(self, index: int, keys_NK: Tensor, gradients_ND: Tensor) -> Tensor:
        """See `Changes.changes`; differentiable."""
        pseudo_NK, pseudo_ND = self.transformed(self.matrices[index], keys_NK, gradients_ND)
        agreement_N1 = (keys_NK * pseudo_NK).sum(-1, keepdim=True)
        return -self.edit_lr_M[index] * agreement_N1 * pseudo_ND

    def ridge(self, index: int) -> float:
        """The exponential of the learned parameter."""
        return float(self.log_ridge_M[index].detach().exp())


class Normalised(Changes):
    """UltraEdit's rule: d = -η ‖k̂‖² û, with the normalised key k̂ and gradient û.

    Args:
        matrices: the edited matrices.
        edit_lr: η.
        ridge: λ of all matrices.
    """

    def __init__(self, matrices: tuple[EditedMatrix, ...], edit_lr: float, ridge: float) -> None:
        super().__init__(matrices, rank=0, layers=0, seed=None)
        self._edit_lr, self._ridge = edit_lr, ridge

    def changes(self, index: int, keys_NK: Tensor, gradients_ND: Tensor) -> Tensor:
        """See `Changes.changes`."""
        keys_NK, gradients_ND = self.transformed(self.matrices[index], keys_NK, gradients_ND)
        return -self._edit_lr * keys_NK.square().sum(-1, keepdim=True) * gradients_ND

    def ridge(self, index: int) -> float:
        """The same for all matrices."""
        return self._ridge


def in_chunks(network: Changes, index: int, keys_NK: Tensor, gradients_ND: Tensor) -> Tensor:
    """`Changes.changes` of any number of tokens, without gradient."""
    with torch.no_grad():
        chunks = (slice(start, start + CHUNK_ROWS) for start in range(0, len(keys_NK), CHUNK_ROWS))
        return torch.cat([network.changes(index, keys_NK[rows], gradients_ND[rows]) for rows in chunks])


def save(networks: Sequence[ShiftNetwork], report: Mapping[str, Any], folder: Path) -> None:
    """Write a network for each round, or one for all, and their training report."""
    for number, network in enumerate(networks):
        (folder / str(number)).mkdir()
        transforms.save(network, {**report, "networks": len(networks)}, folder / str(number))


def load(folder: Path, layers: int, device: torch.device) -> tuple[list[ShiftNetwork], dict[str, Any]]:
    """Read the networks that `save` wrote, and the report; `layers` is the number of residual layers."""

    def make(matrices: tuple[EditedMatrix, ...], report: Mapping[str, Any]) -> ShiftNetwork:
        return ShiftNetwork(matrices, report["rank"], layers, edit_lr=0.0, seed=None)

    first, report = transforms.load(make, folder / "0", device)
    others = [transforms.load(make, folder / str(number), device)[0] for number in range(1, report["networks"])]
    return [first, *others], report
