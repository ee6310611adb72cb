"""Products with the full relative transfer matrix, for the search with a soft target, which needs all columns."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from harness.memory import available_bytes
from methods.onceedit.relative import RelativeState

SHARE_OF_FREE_MEMORY = 0.25
"""R is kept in memory if it takes no more; otherwise its rows are recomputed for every product, a dozen times per step."""

TILE_BYTES = 64 * 2**20
"""Size of a tile of rows."""


@dataclass(frozen=True, eq=False)
class TransferMatrix:
    """R of one model, V × A, in memory or tile by tile.

    Attributes:
        tile_rows: rows per tile.
        matrix_VA: R itself if it is small enough, else None.
    """

    state: RelativeState
    tile_rows: int
    matrix_VA: Tensor | None

    @classmethod
    def of(
        cls,
        state: RelativeState,
        *,
        materialise_below_bytes: int | None = None,
        tile_bytes: int = TILE_BYTES,
    ) -> Self:
        """The matrix of a state, kept in memory if it is smaller than a limit, by default a share of what is free.

        Products go through the same tiles in either case, so results do not depend on it.
        """
        if materialise_below_bytes is None:
            materialise_below_bytes = int(SHARE_OF_FREE_MEMORY * _free_bytes(state.embeddings_VD.device))
        first_1A = state.rows(0, 1)
        row_bytes = first_1A.nbytes
        is_small = state.n_tokens * row_bytes < materialise_below_bytes
        tiled = cls(state, max(1, tile_bytes // row_bytes), None)
        if not is_small:
            return tiled
        # filled in place: a list of tiles would take as much memory again
        matrix_VA = first_1A.new_empty(state.n_tokens, state.n_anchors)
        for start, stop in tiled.tiles():
            matrix_VA[start:stop] = state.rows(start, stop)
        return cls(state, tiled.tile_rows, matrix_VA)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of R."""
        return self.state.rows(start, stop) if self.matrix_VA is None else self.matrix_VA[start:stop]

    def project(self, probs_BV: Tensor) -> Tensor:
        """Project token distributions onto the anchors, B × A: probs_BV @ R."""
        projected_BA: Tensor | None = None
        for start, stop in self.tiles():
            rows_TA = self.rows(start, stop)
            if projected_BA is None:
                projected_BA = rows_TA.new_zeros(probs_BV.shape[0], self.state.n_anchors)
            projected_BA.addmm_(probs_BV[:, start:stop].to(rows_TA.dtype), rows_TA)
        if projected_BA is None:
            raise ValueError("a vocabulary without tokens")
        return projected_BA

    def back_project(self, weights_BA: Tensor) -> Tensor:
        """Map anchor weights back to tokens, B × V: weights_BA @ Rᵀ, the adjoint of `project`."""
        parts = []
        for start, stop in self.tiles():
            rows_TA = self.rows(start, stop)
            parts.append(weights_BA.to(rows_TA.dtype) @ rows_TA.T)
        return torch.cat(parts, dim=1)

    def tiles(self) -> Iterator[tuple[int, int]]:
        """Start and stop row of each tile."""
        for start in range(0, self.state.n_tokens, self.tile_rows):
            yield start, min(start + self.tile_rows, self.state.n_tokens)


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
