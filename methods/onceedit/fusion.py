"""Fusion of two next-token distributions in anchor space (OnceEdit eq. 8): the full distribution, or only its arg-max."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from methods.common.memory import buffer_bytes
from methods.onceedit.bounds import MixturePart, RowBounds
from methods.onceedit.certify import Certificate, Rows, certified_argmax
from methods.onceedit.matrix import TransferMatrix
from methods.onceedit.relative import RelativeState

ROWS_BYTES = 2 * 2**20
"""Memory limit for certifying batch rows together, at one fp64 number per row and token; several such buffers exist at once."""

ROWS_SHARE = 1 / 512
"""The same as a share of a GPU's memory."""


@dataclass(frozen=True, eq=False)
class Projection:
    """Projection of one model's token distributions onto the anchors."""

    state: RelativeState

    @cached_property
    def bounds(self) -> RowBounds:
        """Bounds on the rows of R."""
        return RowBounds.of(self.state)

    @cached_property
    def matrix(self) -> TransferMatrix:
        """R; created only if the full distribution is needed."""
        return TransferMatrix.of(self.state)

    def side(self, probs_BV: Tensor, share_B: Tensor) -> MixturePart:
        """This model's part of a mixture: its probabilities times its share of each row.

        Columns beyond the tokens of the state must be 0: a state of the unedited plug-in has no row for `[WEIGHT]`.
        """
        device = self.state.embeddings_VD.device
        weights_BV = (
            probs_BV[:, : self.state.n_tokens].to(device, torch.float64) * share_B.to(device, torch.float64)[:, None]
        )
        return MixturePart(self.state, self.bounds, weights_BV)


@dataclass(frozen=True, eq=False)
class Fused:
    """P = α · p_s R_s + (1 - α) · p_l R_l for a batch, evaluated lazily.

    Attributes:
        llm, plugin: projections onto the same anchors.
        probs_l_BV: target model probabilities, batch × its vocabulary; rows sum to 1.
        probs_s_BU: plug-in probabilities, batch × its vocabulary; 0 for `[WEIGHT]`.
        alpha_B: weight of the plug-in, in [0, 1].
        is_needed_B: rows whose result is needed; all by default.
    """

    llm: Projection
    plugin: Projection
    probs_l_BV: Tensor
    probs_s_BU: Tensor
    alpha_B: Tensor
    is_needed_B: Tensor | None = None

    @cached_property
    def certificate(self) -> Certificate:
        """The certified arg-max of each row; never materialises V × A numbers."""
        return self._certify(self.sides)

    @cached_property
    def certificate_of_llm(self) -> Certificate:
        """The same for the target model alone (α = 0)."""
        return self._certify(lambda rows: [self.llm.side(self.probs_l_BV[rows], torch.ones_like(self.alpha_B[rows]))])

    def sides(self, rows: Rows = slice(None)) -> Sequence[MixturePart]:
        """Both parts of the mixture, for some rows of the batch."""
        alpha_B = self.alpha_B[rows].double()
        return [self.llm.side(self.probs_l_BV[rows], 1 - alpha_B), self.plugin.side(self.probs_s_BU[rows], alpha_B)]

    @cached_property
    def probs_BA(self) -> Tensor:
        """The full P over the A anchors, at least fp32; rows sum to 1."""
        llm_BA = self.llm.matrix.project(self.probs_l_BV)
        plugin_BA = self.plugin.matrix.project(self.probs_s_BU).to(llm_BA.device)
        return torch.lerp(llm_BA, plugin_BA, self.alpha_B.to(llm_BA)[:, None])

    def _certify(self, sides: Callable[[Rows], Sequence[MixturePart]]) -> Certificate:
        tokens = max(self.probs_l_BV.shape[1], self.probs_s_BU.shape[1])
        together = rows_together(tokens, self.llm.state.embeddings_VD.device)
        return certified_argmax(sides, len(self.alpha_B), together, self.is_needed_B)


def rows_together(n_tokens: int, device: torch.device) -> int:
    """Number of batch rows to certify together: as many as fit in `ROWS_BYTES`, or in `ROWS_SHARE` of a GPU's memory."""
    return max(1, buffer_bytes(device, ROWS_BYTES, ROWS_SHARE) // (8 * n_tokens))
