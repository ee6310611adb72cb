"""MEND's hypernetwork: one gradient transform per matrix shape, one learned edit rate per matrix (MEND §3.1-3.2).

Saved as a safetensors file with the weights and a JSON file with the edited matrices and the training report.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.files import write_json
from methods.mend.factors import GradientFactors
from methods.mend.lowrank import LowRank

WEIGHTS = "hypernetwork.safetensors"
TRAINING = "training.json"

_LAYERS = 2
_EPSILON = 1e-7


@dataclass(frozen=True, slots=True)
class EditedMatrix:
    """An edited matrix: weight name, K inputs, D outputs."""

    name: str
    inputs: int
    outputs: int

    @property
    def shape(self) -> str:
        """Key of the transform shared by all matrices of this shape."""
        return f"{self.inputs}x{self.outputs}"


class Residual(nn.Module):
    """h + max(scale ⊙ (U V h + b) + shift, 0) with a per-matrix scale and shift; initially the identity.

    The maximum is a `clamp`, whose derivative at zero is 1; with ReLU's 0, a layer that starts at U = 0 would never learn.
    """

    def __init__(self, size: int, rank: int, matrices: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.v_RS = nn.Parameter(torch.randn(rank, size, generator=generator))
        self.u_SR = nn.Parameter(torch.zeros(size, rank))
        self.bias_S = nn.Parameter(torch.zeros(size))
        self.scale_MS = nn.Parameter(torch.ones(matrices, size))
        self.shift_MS = nn.Parameter(torch.zeros(matrices, size))

    def forward(self, hidden_NS: Tensor, matrix: int) -> Tensor:
        """Transform the factors of matrix number `matrix`, N × S."""
        mixed_NS = torch.addmm(self.bias_S, hidden_NS @ self.v_RS.mT, self.u_SR.mT)
        return hidden_NS + torch.addcmul(self.shift_MS[matrix], self.scale_MS[matrix], mixed_NS).clamp(min=0)


class GradientTransform(nn.Module):
    """Normalise pairs [x; δ] by running training statistics, then apply two residual layers.

    Mean and variance are accumulated in float64 with Welford's algorithm (1962), batched as in Chan et al. (1979).

    Args:
        inputs, outputs: K and D.
        matrices: number of matrices with this shape.
        rank: rank of the residual layers.
        generator: draws the initial weights.
    """

    count: Tensor
    mean_S: Tensor
    squares_S: Tensor

    def __init__(self, inputs: int, outputs: int, matrices: int, rank: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.inputs, size = inputs, inputs + outputs
        self.layers = nn.ModuleList(Residual(size, rank, matrices, generator) for _ in range(_LAYERS))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean_S", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("squares_S", torch.zeros(size, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, inputs_NK: Tensor, gradients_ND: Tensor) -> None:
        """Add N pairs to the running statistics."""
        rows_NS = torch.cat([inputs_NK, gradients_ND], dim=-1).double()
        if not len(rows_NS):
            return
        mean_S = rows_NS.mean(0)
        moved_S, total = mean_S - self.mean_S, self.count + len(rows_NS)
        self.squares_S += (rows_NS - mean_S).square().sum(0) + moved_S.square() * (self.count * len(rows_NS) / total)
        self.mean_S += moved_S * (len(rows_NS) / total)
        self.count.copy_(total)

    def forward(self, inputs_NK: Tensor, gradients_ND: Tensor, matrix: int) -> tuple[Tensor, Tensor]:
        """x̃ and δ̃ of N pairs; `matrix` is the index of their matrix among those of this shape.

        Raises:
            ValueError: if fewer than two pairs have been observed, so that their variance is undefined.
        """
        if self.count < 2:
            raise ValueError("the statistics of a gradient transform need two observed rows")
        spread_S = (self.squares_S / (self.count - 1)).sqrt() + _EPSILON
        rows_NS = torch.cat([inputs_NK, gradients_ND], dim=-1)
        hidden_NS = (rows_NS - self.mean_S.to(rows_NS.dtype)) / spread_S.to(rows_NS.dtype)
        for layer in self.layers:
            hidden_NS = layer(hidden_NS, matrix)
        return hidden_NS[:, : self.inputs], hidden_NS[:, self.inputs :]


class Hypernetwork(nn.Module):
    """Maps the gradient factors of an edit to the factors of its update, for all edited matrices.

    Args:
        matrices: in the order of their edit rates.
        rank: rank of the transforms.
        edit_lr: initial edit rate.
        seed: seed of the initial weights; None if they are loaded afterwards.
    """

    def __init__(self, matrices: tuple[EditedMatrix, ...], rank: int, edit_lr: float, seed: int | None) -> None:
        super().__init__()
        self.matrices, self.rank = matrices, rank
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        alike: dict[str, list[EditedMatrix]] = {}
        for matrix in matrices:
            alike.setdefault(matrix.shape, []).append(matrix)
        self.transforms = nn.ModuleDict(
            {
                shape: GradientTransform(group[0].inputs, group[0].outputs, len(group), rank, generator)
                for shape, group in alike.items()
            }
        )
        self.edit_lr_M = nn.Parameter(torch.full((len(matrices),), edit_lr))
        self._number = {matrix.name: alike[matrix.shape].index(matrix) for matrix in matrices}

    def observe(self, factors: Mapping[str, GradientFactors]) -> None:
        """Add the factors to the running statistics."""
        for matrix in self.matrices:
            seen = factors[matrix.name]
            self._transform(matrix).observe(seen.inputs_NK, seen.gradients_ND)

    def forward(self, factors: Mapping[str, GradientFactors]) -> dict[str, LowRank]:
        """The update α_m Σ_t δ̃_t x̃_tᵀ of each matrix m, for each row of the batch separately; it is to be added."""
        return {
            matrix.name: self._update(index, matrix, factors[matrix.name]) for index, matrix in enumerate(self.matrices)
        }

    def _update(self, index: int, matrix: EditedMatrix, seen: GradientFactors) -> LowRank:
        transform, number = self._transform(matrix), self._number[matrix.name]
        keys_NK, values_ND = transform(seen.inputs_NK, seen.gradients_ND, number)
        return LowRank(seen.spread(keys_NK), seen.spread(self.edit_lr_M[index] * values_ND))

    def _transform(self, matrix: EditedMatrix) -> GradientTransform:
        transform = self.transforms[matrix.shape]
        assert isinstance(transform, GradientTransform)
        return transform


def save(hypernetwork: Hypernetwork, report: dict[str, Any], folder: Path) -> None:
    """Write a hypernetwork and its training report."""
    save_file({name: value.contiguous() for name, value in hypernetwork.state_dict().items()}, folder / WEIGHTS)
    matrices = [asdict(matrix) for matrix in hypernetwork.matrices]
    write_json(folder / TRAINING, {"matrices": matrices, "rank": hypernetwork.rank, **report})


def load(folder: Path, device: torch.device) -> tuple[Hypernetwork, dict[str, Any]]:
    """Read a frozen hypernetwork and its training report."""
    report = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    matrices = tuple(EditedMatrix(**matrix) for matrix in report["matrices"])
    with torch.device("meta"):
        hypernetwork = Hypernetwork(matrices, report["rank"], edit_lr=0.0, seed=None)
    hypernetwork.load_state_dict(load_file(folder / WEIGHTS, device=str(device)), assign=True)
    return hypernetwork.requires_grad_(False), report
