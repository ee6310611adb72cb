"""Certified arg-max over the anchors of a fused distribution without computing it (OnceEdit eq. 8-9).

P[a] = Σ_k Σ_i w_ki R_k[i, a] over both models k, with w = α p_s and (1 - α) p_l. Only its arg-max is needed; bounds that
tighten level by level rule out anchors until one is left:

* **L0** reads no embeddings. The nearest pair of every token is exact, and its other pairs are bounded by the row's smallest
  and second largest values; for the tokens that could change P most, all listed pairs are exact.
* **L1** reads the embeddings once. e^x ≥ e^μ (1 + x - μ) for every x, so the unlisted pairs together contribute at least a
  constant + v · ê_a with v = Σ_i w_i e^μ_i ρ_i ê_i / Z_i (ρ: scale, ê: unit embedding, μ: mean exponent of the unlisted
  pairs). The gap to the tangent is convex in x and therefore largest at an end of the interval. The heaviest rows are exact.
* **L2** considers only the surviving anchors, with more and more exact rows and finally all of them. If L0 leaves few
  survivors, it follows directly after L0.

Rounding: All sums are in fp64. w ≥ 0 and R ≥ 0, so cancellation occurs only in the tangents, whose terms stay below
200 / A and lose less than 1e-13 of the largest P, which is at least 1 / A. Exponents of listed pairs are stored in fp32,
with an error of at most 100 · 2⁻²⁴ (1 · 2⁻²⁴ under the rule `plain`), which changes a sum by at most that fraction of
itself. If a state was computed in fp32, its log Z and listed exponents have a larger error, which is known
(`RelativeState.error`) and bounded token by token (`RowBounds.error_V`); all bounds are then bounds on P with this log Z.
Bounds are compared with a slack above all errors, and the last step computes P in fp64 from the embeddings, with an exact
log Z of as many tokens as it takes. There, anchors within `TIE` of the largest are tied, and the first of them wins. Ties are
closer than any slack, so no earlier level decides one; the result therefore does not depend on the device, the batch or the
order of summation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from methods.onceedit.bounds import MixturePart, Tangents, approximate_terms, exactly, from_lists, from_tangents

TIE = 1e-9
"""Anchors whose P differs by less than this fraction of the largest are tied."""

LISTED_L0 = 32
LISTED_L1 = 512
"""Tokens per batch row whose listed pairs are exact, at L0 and from L1 on."""

FEW_SURVIVORS = 256
"""Computing this many columns of R is cheaper than another pass over all of them."""

OPEN_TOGETHER = 4
"""Rows that L0 leaves open are taken together in groups this many times as large: each group reads all embeddings."""

EXACT_ROWS_L1 = 8
EXACT_ROWS_L2 = (64, 512, 4096)
"""Tokens per batch row whose rows of R are exact: at L1, and in all steps of L2 but the last."""

_SLACK_FP32 = 2.0**-23
_SLACK_FP64 = 1e-12
_ERRORS = 8  # per bound a listed value, its tangent and log Z, each at most `error` off, and a margin for e^error - 1

_EXACT_LOG_Z = (64, 512, 4096)
"""Tokens per batch row whose log Z is made exact before all are."""


@dataclass(frozen=True, eq=False)
class Certificate:
    """The arg-max of each batch row, and how it was proved.

    Attributes:
        anchors_B: index of the most probable anchor.
        level_B: the level (0, 1 or 2) that decided it.
        margin_B: proved lead over the runner-up, relative to the largest bound, fp64; 0 for a tie.
        survivors_B: number of anchors that L2 had to consider; 1 if L2 was not needed.
    """

    anchors_B: Tensor
    level_B: Tensor
    margin_B: Tensor
    survivors_B: Tensor

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Concatenate certificates."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def with_rows(self, rows_F: Tensor, others: Self) -> Self:
        """Replace some rows by those of another certificate."""
        pairs = ((getattr(self, field.name), getattr(others, field.name)) for field in fields(self))
        return type(self)(*(own_B.index_copy(0, rows_F, other_F) for own_B, other_F in pairs))


Rows = slice | Tensor
"""Some rows of a batch."""


def certified_argmax(
    sides: Callable[[Rows], Sequence[MixturePart]], batch: int, together: int, is_needed_B: Tensor | None = None
) -> Certificate:
    """Arg-max over the anchors of Σ_sides weights_BV @ R; identical to the arg-max of the full product in fp64.

    The host synchronises with the device only to learn whether a level was sufficient.

    Args:
        sides: returns the parts of the mixture for some rows of the batch; same anchors, same device.
        batch: number of rows.
        together: rows processed at once; limits memory, which grows with rows × tokens and rows × anchors.
        is_needed_B: rows to decide; the others get an arbitrary anchor at level 0. All by default.
    """
    parts = []
    for start in range(0, batch, together):
        rows = slice(start, start + together)
        part = sides(rows)
        everything_B = part[0].weights_BV.new_ones(len(part[0].weights_BV), dtype=torch.bool)
        parts.append(_from_lists(part, everything_B if is_needed_B is None else is_needed_B[rows]))
    listed = Certificate.joined(parts)
    open_F = listed.level_B.nonzero().squeeze(-1)  # the only round trip to the host if L0 decides all rows
    if not len(open_F):
        return listed
    parts = [_searched(sides(rows_F)) for rows_F in torch.split(open_F, OPEN_TOGETHER * together)]
    searched = Certificate.joined(parts)
    return listed.with_rows(open_F, searched)


def _from_lists(sides: Sequence[MixturePart], is_needed_B: Tensor) -> Certificate:
    """L0; rows that it does not decide have level 1."""
    low_BA, high_BA = from_lists(sides, LISTED_L0)
    anchors_B, is_decided_B, margin_B = _decide(low_BA, high_BA, _slack(sides, high_BA))
    return Certificate(anchors_B, (~is_decided_B & is_needed_B).long(), margin_B, torch.ones_like(anchors_B))


def _searched(sides: Sequence[MixturePart]) -> Certificate:
    """L2 for rows of which L0 leaves few survivors, else L1 and L2."""
    low_BA, high_BA = from_lists(sides, LISTED_L0)
    is_left_BA = _survivors(low_BA, high_BA, _slack(sides, high_BA))
    n_left_B, anchors_B = is_left_BA.sum(dim=-1), low_BA.argmax(dim=-1)
    found = Certificate(anchors_B, torch.ones_like(anchors_B), torch.zeros_like(low_BA[:, 0]), n_left_B)
    few_U = (n_left_B <= FEW_SURVIVORS).nonzero().squeeze(-1)
    if len(few_U):
        left = [is_left_A.nonzero().squeeze(-1) for is_left_A in is_left_BA[few_U]]
        winners_U, margin_U = _exact_argmax([side.take(few_U) for side in sides], left)
        found = found.with_rows(few_U, Certificate(winners_U, torch.full_like(winners_U, 2), margin_U, n_left_B[few_U]))
    many_U = (n_left_B > FEW_SURVIVORS).nonzero().squeeze(-1)
    if len(many_U):
        found = found.with_rows(many_U, _from_embeddings([side.take(many_U) for side in sides]))
    return found


def _from_embeddings(sides: Sequence[MixturePart]) -> Certificate:
    """L1 for all rows, then L2 for the undecided ones, row by row."""
    tangents = [Tangents.of(side) for side in sides]
    low_BA, high_BA = from_tangents(tangents, EXACT_ROWS_L1, LISTED_L1)
    slack_B = _slack(sides, high_BA)
    anchors_B, is_decided_B, margin_B = _decide(low_BA, high_BA, slack_B)
    is_left_BA = _survivors(low_BA, high_BA, slack_B)
    level_B, survivors_B = torch.ones_like(anchors_B), torch.ones_like(anchors_B)
    undecided: dict[int, Tensor] = {}
    for row in (~is_decided_B).nonzero().squeeze(-1).tolist():
        row_1 = anchors_B.new_tensor([row])
        left_S = is_left_BA[row].nonzero().squeeze(-1)
        level_B[row], survivors_B[row] = 2, len(left_S)
        parts, part_tangents = [side.take(row_1) for side in sides], [side.take(row_1) for side in tangents]
        for exact_rows in EXACT_ROWS_L2:
            bounds = from_tangents(part_tangents, exact_rows, LISTED_L1, left_S)
            slack_1 = _slack(parts, bounds[1])
            best_1, is_decided_1, margin_1 = _decide(*bounds, slack_1)
            if is_decided_1:
                anchors_B[row], margin_B[row] = left_S[best_1[0]], margin_1[0]
                break
            left_S = left_S[_survivors(*bounds, slack_1)[0]]
        else:
            undecided[row] = left_S
    if undecided:
        rows_U = anchors_B.new_tensor(list(undecided))
        anchors_B[rows_U], margin_B[rows_U] = _exact_argmax(
            [side.take(rows_U) for side in sides], [*undecided.values()]
        )
    return Certificate(anchors_B, level_B, margin_B, survivors_B)


def _slack(sides: Sequence[MixturePart], high_BA: Tensor) -> Tensor:
    """Twice the error of a bound, as a fraction of the largest bound of the row: of listed exponents, their tangents, log Z."""
    rounding = max(side.state.largest_x for side in sides) * _SLACK_FP32 + _SLACK_FP64
    error_B = torch.stack([side.error_B for side in sides]).sum(dim=0)
    return rounding + _ERRORS * error_B / high_BA.amax(dim=-1)


def _decide(low_BA: Tensor, high_BA: Tensor, slack_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The anchor with the largest lower bound, whether it is proved to be the arg-max, and its proved lead."""
    best_B1 = low_BA.argmax(dim=-1, keepdim=True)
    lowest_B = low_BA.gather(1, best_B1).squeeze(1)
    rival_B = high_BA.scatter(1, best_B1, 0.0).amax(dim=-1)
    lead_B = (lowest_B - rival_B) / high_BA.amax(dim=-1) - slack_B
    return best_B1.squeeze(1), lead_B > 0, lead_B.clamp(0.0, 1.0)


def _survivors(low_BA: Tensor, high_BA: Tensor, slack_B: Tensor) -> Tensor:
    """Mask of the anchors that may still be the arg-max."""
    return high_BA >= low_BA.amax(dim=-1, keepdim=True) - slack_B[:, None] * high_BA.amax(dim=-1, keepdim=True)


def _make_exact(sides: Sequence[MixturePart], row: int, anchors_S: Tensor, fused_S: Tensor) -> None:
    """Replace P of one batch row, computed with approximate log Z, by exact values where the error could decide.

    Only the differences between the anchors that could be the largest matter, and of those only the tokens whose values
    differ among them.
    """
    error = max(side.state.error for side in sides)
    if not error:
        return
    is_rival_S = fused_S >= fused_S.amax() * (1 - _ERRORS * error)
    rivals_R = is_rival_S.nonzero().squeeze(-1)
    fused_S.copy_(torch.where(is_rival_S, fused_S, fused_S * (1 + 3 * error)))  # so that no lead is overestimated
    if len(rivals_R) == 1:
        return
    terms = [approximate_terms(side, row, anchors_S[rivals_R]) for side in sides]
    spreads = [terms_VR.amax(dim=1) - terms_VR.amin(dim=1) for terms_VR in terms]
    for tokens in (*_EXACT_LOG_Z, max(len(spread_V) for spread_V in spreads)):
        open_error, fused_R = 0.0, torch.zeros_like(fused_S[rivals_R])
        for side, terms_VR, spread_V in zip(sides, terms, spreads, strict=True):
            heaviest = spread_V.topk(min(tokens, len(spread_V))).indices
            change_N = (side.state.log_z_V[heaviest] - side.state.exact_log_z(heaviest)).exp()
            exact_VR = terms_VR.index_copy(0, heaviest, terms_VR[heaviest] * change_N[:, None])
            fused_R += exact_VR.sum(dim=0)
            open_error += 2 * error * float(spread_V.sum() - spread_V[heaviest].sum())
        fused_S[rivals_R] = fused_R
        first, second = fused_R.topk(2).values.tolist()
        if first - second > open_error + TIE * first or open_error < TIE * first / 100:
            return


def _exact_argmax(sides: Sequence[MixturePart], survivors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The most probable survivor of each row and its lead; each row of R is computed once for the whole batch."""
    anchors_S = torch.unique(torch.cat(list(survivors)))
    fused_US = exactly(sides, anchors_S)
    for row, own_S in enumerate(survivors):
        fused_US[row].masked_fill_(~torch.isin(anchors_S, own_S), 0.0)
        _make_exact(sides, row, anchors_S, fused_US[row])
    largest_U = fused_US.amax(dim=-1)
    best_U1 = (fused_US >= largest_U[:, None] * (1 - TIE)).int().argmax(dim=-1, keepdim=True)
    rival_U = fused_US.scatter(1, best_U1, 0.0).amax(dim=-1)
    lead_U = (fused_US.gather(1, best_U1).squeeze(1) - rival_U) / largest_U
    return anchors_S[best_U1.squeeze(1)], lead_U.clamp(0.0, 1.0)
