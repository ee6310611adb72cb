"""The pass over all rows of R in fp32 with a bound on its error, for vocabularies where fp64 would take minutes.

All vectors are unit vectors when they are multiplied, so by the Cauchy-Schwarz inequality the error of a cosine is at most
(D + 2) · 2⁻²⁴, in whatever order a kernel adds, fused or not (Higham 2002, §3.1, with one rounding of each factor). Whoever
needs more recomputes single rows in fp64 from the embeddings (`RelativeState.exact_log_z`).
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.api import Advance
from methods.common.largest import largest_of_rows

if TYPE_CHECKING:
    from methods.onceedit.relative import RelativeState

TILE_BYTES = 32 * 2**20
"""Size of a tile of exponents; larger ones are no faster, because anchors are converted only once."""

_ROUNDING = 2.0**-24
_OTHER_ROUNDINGS = 8  # of the scale, the product with it, and a margin for those of second order
_SUM_ERROR = 1e-5  # of the sum of the other terms beyond that of its terms: exp to 2 ulp, blocked summation
_SMALLEST_SQUARE = 1e-24  # of ‖c‖, as in fp64
_ANCHORS = 1024  # anchors converted at once
_TOKENS = 2**14  # tokens whose lists are compared at once


def fill(state: "RelativeState", deepen_scale: float | None, advance: Advance) -> float:
    """Fill the state and return a bound on the error of its exponents and of log Z.

    The bounds `next_x_V` and `low_x_V` are widened by the error, so that they hold for the exact exponents. An owner is
    entered where it is proved to be the anchor's own token, else -1.

    Args:
        state: with norms; overwritten.
        deepen_scale: s of the scale s / ‖c_i‖; None if the scales are entered already.
        advance: called with the number of tokens of each tile.
    """
    root_DD = state.geometry.root()
    anchors_AD = torch.empty(state.n_anchors, state.embeddings_VD.shape[1], device=state.embeddings_VD.device)
    anchor_sum_D = state.norm_V.new_zeros(state.embeddings_VD.shape[1])
    for start in range(0, state.n_anchors, _ANCHORS):
        block = slice(start, start + _ANCHORS)
        anchors_AD[block] = _unit(state, state.anchor_ids_A[block], root_DD)
        anchor_sum_D += anchors_AD[block].double().sum(dim=0)  # sum(dtype=…) of all would convert them as a whole
    gram_DD = _gram(state, root_DD) if deepen_scale else None
    listed = state.near_VM.shape[1]
    place_V = torch.full((state.n_tokens,), -1, device=anchors_AD.device)
    place_V[state.anchor_ids_A] = torch.arange(state.n_anchors, device=anchors_AD.device)
    rows = max(1, TILE_BYTES // (4 * state.n_anchors))
    tile_TA = torch.empty(min(rows, state.n_tokens), state.n_anchors, device=anchors_AD.device)
    largest = 0.0
    for start in range(0, state.n_tokens, rows):
        ids = slice(start, min(start + rows, state.n_tokens))
        unit_TD = _unit(state, state.token_ids_V[ids], root_DD)
        length_T = torch.linalg.vector_norm(unit_TD, dim=-1)  # 1, or 0 for a zero embedding
        if gram_DD is not None and deepen_scale:
            squares_T = ((unit_TD @ gram_DD) * unit_TD).sum(dim=-1)
            squares_T += (1 - length_T**4) * (place_V[ids] >= 0)  # its cosine with itself is 1 even if its length is 0
            state.scale_V[ids] = deepen_scale / squares_T.clamp_min(_SMALLEST_SQUARE).sqrt()
        scaled_TD = unit_TD * state.scale_V[ids, None]
        x_TA = torch.mm(scaled_TD.float(), anchors_AD.T, out=tile_TA[: len(scaled_TD)])
        own_N = (place_V[ids] >= 0).nonzero().squeeze(-1)
        x_TA[own_N, place_V[ids][own_N]] = state.scale_V[ids][own_N].float()
        error_T = state.scale_V[ids] * length_T * ((unit_TD.shape[1] + 2 + _OTHER_ROUNDINGS) * _ROUNDING)
        largest = max(largest, float(error_T.max()))
        top_TM, near_TM = largest_of_rows(x_TA, min(listed + 1, state.n_anchors))
        low_T = x_TA.amin(dim=-1).double()
        state.near_VM[ids] = near_TM[:, :listed].int()
        state.near_x_VM[ids] = top_TM[:, :listed]
        state.low_x_V[ids] = low_T - error_T
        if listed < state.n_anchors:
            sum_T = scaled_TD @ anchor_sum_D
            sum_T += state.scale_V[ids] * (1 - length_T**2) * (place_V[ids] >= 0)  # with itself, as above
            state.next_x_V[ids] = top_TM[:, listed].double() + error_T
            state.mean_x_V[ids] = (sum_T - top_TM[:, :listed].double().sum(dim=-1)) / (state.n_anchors - listed)
        else:
            state.next_x_V[ids] = state.mean_x_V[ids] = low_T - error_T
        peak_T1, own_T = top_TM[:, :1], torch.zeros_like(low_T)
        own_T[own_N] = (state.scale_V[ids] - peak_T1[:, 0].double())[own_N].exp_()
        x_TA[own_N, place_V[ids][own_N]] = -torch.inf  # the own term is exact, so only the others are added in fp32
        others_T = x_TA.sub_(peak_T1).exp_().sum(dim=-1).double()
        state.log_z_V[ids] = others_T.add_(own_T).log_() + peak_T1[:, 0].double()
        advance(ids.stop - ids.start)
    error = largest + _SUM_ERROR
    state.owner_A.copy_(_proved_owners(state, error))
    return error


def _unit(state: "RelativeState", ids: Tensor, root_DD: Tensor | None) -> Tensor:
    """Unit vectors of N tokens in fp64, N × D, such that dot products are cosines."""
    vectors_ND = state.vectors(ids)
    if root_DD is not None:
        vectors_ND = vectors_ND @ root_DD
    return vectors_ND / state.norm_V[ids, None]


def _gram(state: "RelativeState", root_DD: Tensor | None) -> Tensor:
    """Σ ê êᵀ over the anchors: ‖c‖² of a token is êᵀ · gram · ê."""
    parts = (_unit(state, ids, root_DD) for ids in torch.split(state.anchor_ids_A, _ANCHORS))
    width = state.embeddings_VD.shape[1]
    gram_DD = state.norm_V.new_zeros(width, width)
    for unit_ND in parts:
        gram_DD.addmm_(unit_ND.T, unit_ND)
    return gram_DD


def _proved_owners(state: "RelativeState", error: float) -> Tensor:
    """The own token of each anchor whose value is provably the largest of its column, else -1.

    Of the other tokens, some list the anchor, which bounds their value; all others are below their largest unlisted value.
    """
    unlisted = (state.next_x_V - state.log_z_V).amax()
    rival_A = unlisted.expand(state.n_anchors).clone()
    for ids in torch.split(state.token_ids_V, _TOKENS):
        near_TM = state.near_VM[ids].long()
        log_r_TM = state.near_x_VM[ids] - state.log_z_V[ids, None]
        others_TM = log_r_TM.masked_fill_(state.anchor_ids_A[near_TM] == ids[:, None], -torch.inf)
        rival_A.scatter_reduce_(0, near_TM.flatten(), others_TM.flatten(), "amax")
    own_A = state.scale_V[state.anchor_ids_A] - state.log_z_V[state.anchor_ids_A]
    return torch.where(own_A > rival_A + 4 * error, state.anchor_ids_A, -1)
