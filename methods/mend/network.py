"""MEND's hypernetwork: a gradient transform per matrix shape, and one learned edit rate per matrix (MEND §3.1-3.2)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from methods.common import transforms
from methods.common.factors import GradientFactors
from methods.common.transforms import EditedMatrix, GradientTransforms
from methods.mend.lowrank import LowRank

LAYERS = 2
"""Residual layers of a transform."""


class Hypernetwork(GradientTransforms):
    """Maps the gradient factors of an edit to the factors of its update, for all edited matrices.

    Args:
        matrices: in the order of their edit rates.
        rank: rank of the transforms.
        edit_lr: initial edit rate.
        seed: seed of the initial weights; None if they are loaded afterwards.
    """

    def __init__(self, matrices: tuple[EditedMatrix, ...], rank: int, edit_lr: float, seed: int | None) -> None:
        super().__init__(matrices, rank, LAYERS, seed)
        self.edit_lr_M = nn.Parameter(torch.full((len(matrices),), edit_lr))

    def forward(self, factors: Mapping[str, GradientFactors]) -> dict[str, LowRank]:
        """The update α_m Σ_t δ̃_t x̃_tᵀ of each matrix m, for each row of the batch separately; it is to be added."""
        return {
            matrix.name: self._update(index, matrix, factors[matrix.name]) for index, matrix in enumerate(self.matrices)
        }

    def _update(self, index: int, matrix: EditedMatrix, seen: GradientFactors) -> LowRank:
        keys_NK, values_ND = self.transformed(matrix, seen.inputs_NK, seen.gradients_ND)
        return LowRank(seen.spread(keys_NK), seen.spread(self.edit_lr_M[index] * values_ND))


def load(folder: Path, device: torch.device) -> tuple[Hypernetwork, dict[str, Any]]:
    """Read a frozen hypernetwork and its training report."""
    return transforms.load(
        lambda matrices, report: Hypernetwork(matrices, report["rank"], edit_lr=0.0, seed=None), folder, device
    )
