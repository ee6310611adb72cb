"""Networks that turn gradients into updates, one gradient transform per matrix shape (MEND §3.1), and their files.

A network is saved as a safetensors file with its weights and a JSON file with the edited matrices and a training report.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from harness.files import write_json
from methods.common import Implementation
from methods.common.factors import GradientFactors

WEIGHTS = "hypernetwork.safetensors"
TRAINING = "training.json"

_EPSILON: Mapping[Implementation, float] = {"corrected": 1e-7, "faithful-easyedit": torch.finfo(torch.float32).eps}


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
        return hidden_NS + torch.addcmul(self.shift_MS[matrix], self.scale_MS[matrix], self.mixed(hidden_NS)).clamp(
            min=0
        )

    def mixed(self, hidden_NS: Tensor) -> Tensor:
        """U V h + b, N × S."""
        return torch.addmm(self.bias_S, hidden_NS @ self.v_RS.mT, self.u_SR.mT)


class ScaledResidual(Residual):
    """h + scale ⊙ max(U V h + b, 0) + shift: MALMEN scales and shifts after the maximum, MEND before it."""

    def forward(self, hidden_NS: Tensor, matrix: int) -> Tensor:
        """Transform the factors of matrix number `matrix`, N × S."""
        positive_NS = self.mixed(hidden_NS).clamp(min=0)
        return hidden_NS + torch.addcmul(self.shift_MS[matrix], self.scale_MS[matrix], positive_NS)


class GradientTransform(nn.Module):
    """Normalise pairs [x; δ] by the statistics of all that were observed, then apply residual layers.

    Mean and variance are accumulated in float64 with Welford's algorithm (1962), batched as in Chan et al. (1979).

    Args:
        inputs, outputs: K and D.
        residuals: the residual layers; without any, pairs are only normalised.

    Attributes:
        implementation: `faithful-easyedit` adds up variances as EasyEdit's MALMEN and UltraEdit do (malmen/nets.py:22): that of
            m pairs counts m / (m - 1) times, and is NaN for one.
    """

    count: Tensor
    mean_S: Tensor
    squares_S: Tensor

    def __init__(self, inputs: int, outputs: int, residuals: Iterable[Residual]) -> None:
        super().__init__()
        self.inputs, size = inputs, inputs + outputs
        self.implementation: Implementation = "corrected"
        self.layers = nn.ModuleList(residuals)
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
        squares_S = (rows_NS - mean_S).square().sum(0)
        if self.implementation == "faithful-easyedit":
            squares_S = rows_NS.var(0) * len(rows_NS)
        self.squares_S += squares_S + moved_S.square() * (self.count * len(rows_NS) / total)
        self.mean_S += moved_S * (len(rows_NS) / total)
        self.count.copy_(total)

    def forward(self, inputs_NK: Tensor, gradients_ND: Tensor, matrix: int) -> tuple[Tensor, Tensor]:
        """x̃ and δ̃ of N pairs; `matrix` is the index of their matrix among those of this shape.

        If a single pair has been observed, it is normalised to zero.

        Raises:
            ValueError: if nothing has been observed.
        """
        if self.count < 1:
            raise ValueError("the statistics of a gradient transform need observed rows")
        spread_S = (self.squares_S / (self.count - 1).clamp(min=1)).sqrt() + _EPSILON[self.implementation]
        rows_NS = torch.cat([inputs_NK, gradients_ND], dim=-1)
        hidden_NS = (rows_NS - self.mean_S.to(rows_NS.dtype)) / spread_S.to(rows_NS.dtype)
        for layer in self.layers:
            hidden_NS = layer(hidden_NS, matrix)
        return hidden_NS[:, : self.inputs], hidden_NS[:, self.inputs :]


class GradientTransforms(nn.Module):
    """A gradient transform for each shape among the edited matrices, with a part of its own for each matrix.

    Args:
        matrices: in the order of what a network learns for each of them.
        rank, layers: of each transform's residual layers.
        seed: seed of the initial weights; None if they are loaded afterwards.
    """

    residual: ClassVar[type[Residual]] = Residual

    def __init__(self, matrices: tuple[EditedMatrix, ...], rank: int, layers: int, seed: int | None) -> None:
        super().__init__()
        self.matrices, self.rank = matrices, rank
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        alike: dict[str, list[EditedMatrix]] = {}
        for matrix in matrices:
            alike.setdefault(matrix.shape, []).append(matrix)
        self.transforms = nn.ModuleDict(
            {
                shape: GradientTransform(
                    group[0].inputs,
                    group[0].outputs,
                    [
                        self.residual(group[0].inputs + group[0].outputs, rank, len(group), generator)
                        for _ in range(layers)
                    ],
                )
                for shape, group in alike.items()
            }
        )
        self._number = {matrix.name: alike[matrix.shape].index(matrix) for matrix in matrices}

    def follow(self, implementation: Implementation) -> None:
        """Normalise as this implementation does (see `GradientTransform`)."""
        for transform in self.transforms.values():
            assert isinstance(transform, GradientTransform)
            transform.implementation = implementation

    def observe(self, factors: Mapping[str, GradientFactors]) -> None:
        """Add the factors of each matrix to the running statistics of its shape."""
        for matrix in self.matrices:
            seen = factors[matrix.name]
            self._transform(matrix).observe(seen.inputs_NK, seen.gradients_ND)

    def transformed(self, matrix: EditedMatrix, inputs_NK: Tensor, gradients_ND: Tensor) -> tuple[Tensor, Tensor]:
        """x̃ and δ̃ of N pairs of a matrix."""
        pair: tuple[Tensor, Tensor] = self._transform(matrix)(inputs_NK, gradients_ND, self._number[matrix.name])
        return pair

    def _transform(self, matrix: EditedMatrix) -> GradientTransform:
        transform = self.transforms[matrix.shape]
        assert isinstance(transform, GradientTransform)
        return transform


Network = TypeVar("Network", bound=GradientTransforms)


def save(network: GradientTransforms, report: dict[str, Any], folder: Path) -> None:
    """Write a network and its training report."""
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / WEIGHTS)
    matrices = [asdict(matrix) for matrix in network.matrices]
    write_json(folder / TRAINING, {"matrices": matrices, "rank": network.rank, **report})


def load(
    make: Callable[[tuple[EditedMatrix, ...], Mapping[str, Any]], Network], folder: Path, device: torch.device
) -> tuple[Network, dict[str, Any]]:
    """Read a frozen network and its training report.

    Args:
        make: makes the network, with any weights, from its matrices and the report.
        folder: written by `save`.
        device: where the weights go.
    """
    report = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    matrices = tuple(EditedMatrix(**matrix) for matrix in report["matrices"])
    with torch.device("meta"):
        network = make(matrices, report)
    network.load_state_dict(load_file(folder / WEIGHTS, device=str(device)), assign=True)
    return network.requires_grad_(False), report
