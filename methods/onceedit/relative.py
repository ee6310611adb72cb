"""Relative representations: each token as a distribution over the anchors (OnceEdit eq. 15-16, DeePEn).

Row i of the relative transfer matrix R (V × A) is a softmax over the cosines between token i and all anchors. R is held
in memory only for small vocabularies; one of 32k would need 4.1 GB, so there R is computed by tiles of rows from the
embeddings, with the peak and the mass of each softmax kept from one streaming pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import torch
from torch import Tensor

from methods.onceedit.forward import at_least_fp32

Rule = Literal["deepen", "plain"]

MATERIALISE_BELOW_BYTES = 256 * 2**20
"""R is kept in memory when it is smaller than this."""

TILE_BYTES = 64 * 2**20
"""Size of one tile of rows when it is not."""

_DEEPEN_SCALE = 100.0
_SMALLEST_NORM = 1e-12  # a row of zeros is uniform


@dataclass(frozen=True, eq=False)
class RelativeState:
    """The relative transfer matrix of one model, by its parts.

    Attributes:
        units_VD: unit rows of the input embeddings, at least fp32.
        anchor_ids_A: token id of each anchor.
        scale_V: factor of row i inside its softmax: 1 (`plain`, the paper's formula) or 100 / ‖c_i‖₂ (`deepen`, what
            DeePEn's code does), c_i being the cosines of token i with all anchors.
        peak_V, mass_V: largest exponent of row i, and the sum of its exponentials relative to that: log Z = peak + log
            mass.
        tile_rows: rows per tile.
        matrix_VA: R itself where it is small enough, else None.
    """

    units_VD: Tensor
    anchor_ids_A: Tensor
    scale_V: Tensor
    peak_V: Tensor
    mass_V: Tensor
    tile_rows: int
    matrix_VA: Tensor | None

    @classmethod
    def build(
        cls,
        embeddings_VD: Tensor,
        anchor_ids: Sequence[int],
        rule: Rule = "deepen",
        *,
        materialise_below_bytes: int = MATERIALISE_BELOW_BYTES,
        tile_bytes: int = TILE_BYTES,
    ) -> Self:
        """One pass over the rows of R.

        Args:
            embeddings_VD: input embeddings; computed in fp32, or in fp64 if they are given so.
            anchor_ids: token id of each anchor, in anchor order, no id twice.
            rule: `deepen` or `plain`.
            materialise_below_bytes: keep R when it needs less than this.
            tile_bytes: memory of one tile otherwise.
        """
        if len(set(anchor_ids)) != len(anchor_ids):
            raise ValueError("a token is an anchor twice")
        embeddings_VD = at_least_fp32(embeddings_VD.detach())
        units_VD = torch.nn.functional.normalize(embeddings_VD, dim=-1)
        anchor_ids_A = torch.tensor(anchor_ids, dtype=torch.long, device=units_VD.device)
        rows, row_bytes = units_VD.shape[0], len(anchor_ids) * units_VD.element_size()
        is_small = rows * row_bytes < materialise_below_bytes
        state = cls(
            units_VD,
            anchor_ids_A,
            scale_V=units_VD.new_ones(rows),
            peak_V=units_VD.new_empty(rows),
            mass_V=units_VD.new_empty(rows),
            tile_rows=max(1, tile_bytes // row_bytes),
            matrix_VA=units_VD.new_empty(rows, len(anchor_ids)) if is_small else None,
        )
        state._fill(rule)
        return state

    @property
    def n_tokens(self) -> int:
        """V, rows of the embedding table."""
        return self.units_VD.shape[0]

    @property
    def n_anchors(self) -> int:
        """A."""
        return self.anchor_ids_A.shape[0]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of R, stop - start × A; each sums to 1."""
        if self.matrix_VA is not None:
            return self.matrix_VA[start:stop]
        return (self._cosines(start, stop) * self.scale_V[start:stop, None]).softmax(dim=-1)

    def project(self, probs_BV: Tensor) -> Tensor:
        """Token distributions in anchor space, B × A: probs_BV @ R."""
        probs_BV = probs_BV.to(self.units_VD.dtype)
        projected_BA = probs_BV.new_zeros(probs_BV.shape[0], self.n_anchors)
        for start, stop in self._tiles():
            projected_BA.addmm_(probs_BV[:, start:stop], self.rows(start, stop))
        return projected_BA

    def back_project(self, weights_BA: Tensor) -> Tensor:
        """Anchor weights pulled back onto tokens, B × V: weights_BA @ Rᵀ, the adjoint of `project`."""
        weights_BA = weights_BA.to(self.units_VD.dtype)
        pulled_BV = weights_BA.new_empty(weights_BA.shape[0], self.n_tokens)
        for start, stop in self._tiles():
            torch.mm(weights_BA, self.rows(start, stop).T, out=pulled_BV[:, start:stop])
        return pulled_BV

    def log_columns(self, anchors_B: Tensor) -> Tensor:
        """Logarithms of single columns of R, B × V; finite also where a value of R underflows."""
        own_B = self.anchor_ids_A[anchors_B]
        cosines_BV = self.units_VD[own_B] @ self.units_VD.T
        cosines_BV[torch.arange(len(own_B), device=own_B.device), own_B] = 1.0
        return cosines_BV * self.scale_V - self.peak_V - self.mass_V.log()

    def columns(self, anchors_B: Tensor) -> Tensor:
        """Single columns of R as rows, B × V."""
        return self.log_columns(anchors_B).exp_()

    @cached_property
    def owner_A(self) -> Tensor:
        """Token with the largest value in each column; a tie goes to the anchor's own token, else to the lowest id."""
        best_A = self.units_VD.new_full((self.n_anchors,), -1.0)
        own_A = self.units_VD.new_empty(self.n_anchors)
        owner_A = torch.zeros_like(self.anchor_ids_A)
        for start, stop in self._tiles():
            rows_TA = self.rows(start, stop)
            row_N, anchor_N = self._anchors_among(start, stop)
            own_A[anchor_N] = rows_TA[row_N, anchor_N]
            values_A, index_A = rows_TA.max(dim=0)
            better_A = values_A > best_A
            best_A = torch.where(better_A, values_A, best_A)
            owner_A = torch.where(better_A, index_A + start, owner_A)
        return torch.where(own_A >= best_A, self.anchor_ids_A, owner_A)

    def _cosines(self, start: int, stop: int) -> Tensor:
        """Cosines of tokens start..stop with all anchors; of an anchor with itself exactly 1."""
        cosines_TA = self.units_VD[start:stop] @ self.units_VD[self.anchor_ids_A].T
        cosines_TA[self._anchors_among(start, stop)] = 1.0
        return cosines_TA

    def _anchors_among(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """The anchors with a token in start..stop: their rows relative to start, and their columns."""
        anchor_N = ((self.anchor_ids_A >= start) & (self.anchor_ids_A < stop)).nonzero().squeeze(-1)
        return self.anchor_ids_A[anchor_N] - start, anchor_N

    def _fill(self, rule: Rule) -> None:
        for start, stop in self._tiles():
            cosines_TA = self._cosines(start, stop)
            if rule == "deepen":
                norms_T = cosines_TA.norm(dim=-1).clamp_min(_SMALLEST_NORM)
                self.scale_V[start:stop] = _DEEPEN_SCALE / norms_T
            exponents_TA = cosines_TA.mul_(self.scale_V[start:stop, None])
            self.peak_V[start:stop] = exponents_TA.amax(dim=-1)
            shares_TA = exponents_TA.sub_(self.peak_V[start:stop, None]).exp_()
            self.mass_V[start:stop] = shares_TA.sum(dim=-1)
            if self.matrix_VA is not None:
                self.matrix_VA[start:stop] = shares_TA / self.mass_V[start:stop, None]

    def _tiles(self) -> Iterator[tuple[int, int]]:
        for start in range(0, self.n_tokens, self.tile_rows):
            yield start, min(start + self.tile_rows, self.n_tokens)
