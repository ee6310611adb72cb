"""Lower and upper bounds on a fused anchor distribution, from listed pairs and from tangents (see `certify`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from methods.onceedit.relative import RelativeState


@dataclass(frozen=True, eq=False)
class RowBounds:
    """Bounds on each row of R that need no embeddings; V values each, fp64.

    Let t(x) = slope · (1 + x - μ) be the tangent of exp(x) / Z at the mean exponent μ of the unlisted pairs.

    Attributes:
        nearest_V: the anchor with the largest value.
        low_V, next_V, second_V, peak_V: smallest, largest unlisted, second largest and largest value of the row.
        slope_V: exp(μ) / Z; 0 for a zero embedding.
        mean_x_V: μ.
        missed_next_V, missed_peak_V: maximum of exp(x) / Z - t(x) over the unlisted pairs, and over all pairs.
        error_V: bound on the error of a value, as far as it comes from `RelativeState.error`. A token's pair with itself is
            exact but for log Z, and log Z is wrong only as far as it consists of other pairs.
    """

    nearest_V: Tensor
    low_V: Tensor
    next_V: Tensor
    second_V: Tensor
    peak_V: Tensor
    slope_V: Tensor
    mean_x_V: Tensor
    missed_next_V: Tensor
    missed_peak_V: Tensor
    error_V: Tensor

    @classmethod
    def of(cls, state: RelativeState) -> Self:
        """Derive the bounds from a state."""
        peak_x_V = state.near_x_VM[:, 0].double()
        # a zero embedding contributes nothing to v although its cosine with itself is 1, so it gets no tangent
        slope_V = (state.mean_x_V - state.log_z_V).exp_().masked_fill_(state.is_zero_V, 0.0)

        def value(x_V: Tensor) -> Tensor:
            return (x_V - state.log_z_V).exp_()

        def missed(x_V: Tensor) -> Tensor:
            return value(x_V) - slope_V * (1 + x_V - state.mean_x_V)

        missed_low_V = missed(state.low_x_V)
        second_x_V = state.near_x_VM[:, 1].double() if state.near_x_VM.shape[1] > 1 else state.next_x_V
        nearest_V, second_V, peak_V = state.near_VM[:, 0].long(), value(second_x_V), value(peak_x_V)
        is_own_V = state.anchor_ids_A[nearest_V] == state.token_ids_V
        of_log_z_V = torch.where(is_own_V, (1 - peak_V).clamp_min(0.0), 1.0)
        error_V = state.error * (peak_V * of_log_z_V + torch.where(is_own_V, second_V, peak_V))
        return cls(
            nearest_V,
            value(state.low_x_V),
            value(state.next_x_V),
            second_V,
            peak_V,
            slope_V,
            state.mean_x_V,
            torch.maximum(missed_low_V, missed(state.next_x_V)),
            torch.maximum(missed_low_V, missed(peak_x_V)),
            error_V,
        )


@dataclass(frozen=True, eq=False)
class MixturePart:
    """One model's part of the mixture.

    Attributes:
        state: relative state of the model.
        bounds: bounds on the rows of its R.
        weights_BV: the model's mixture weight times its probabilities, fp64, non-negative.
    """

    state: RelativeState
    bounds: RowBounds
    weights_BV: Tensor

    @property
    def error_B(self) -> Tensor:
        """Bound on the error of this part of P at every anchor, as far as it comes from `RelativeState.error`."""
        return self.weights_BV @ self.bounds.error_V

    def take(self, rows_F: Tensor) -> Self:
        """Some rows of the batch."""
        return type(self)(self.state, self.bounds, self.weights_BV[rows_F])


def from_lists(sides: Sequence[MixturePart], listed_tokens: int) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds on P, B × A each, without reading embeddings.

    The nearest pair of every token is exact and its other pairs are in [low, second]. For the `listed_tokens` tokens per
    row that could change P most, all listed pairs are exact and the others are in [low, next].

    Args:
        sides: the parts of the mixture.
        listed_tokens: number of such tokens.
    """
    shape = (len(sides[0].weights_BV), sides[0].state.n_anchors)
    low_BA, gap_BA = sides[0].weights_BV.new_zeros(2, *shape).unbind()
    for side in sides:
        bounds, w_BV = side.bounds, side.weights_BV
        listed = _Listed.of(side, bounds.second_V - bounds.low_V, listed_tokens)
        unlisted_BN1 = listed.of_token(bounds.next_V - bounds.low_V)
        open_BV = w_BV * (bounds.second_V - bounds.low_V)
        open_BV.scatter_(1, listed.ids_BN, listed.w_BN * unlisted_BN1.squeeze(-1))
        nearest_BV = bounds.nearest_V.expand_as(w_BV)
        low_BA += (w_BV @ bounds.low_V)[:, None]
        low_BA.scatter_add_(1, nearest_BV, w_BV * (bounds.peak_V - bounds.low_V))
        listed.scatter_into(low_BA, listed.values_BNM() - listed.of_token(bounds.low_V), from_pair=1)
        gap_BA += open_BV.sum(dim=-1, keepdim=True)
        gap_BA.scatter_add_(1, nearest_BV, open_BV.neg_())
        listed.scatter_into(gap_BA, -unlisted_BN1, from_pair=1)
    return low_BA, gap_BA.add_(low_BA)


@dataclass(frozen=True, eq=False)
class Tangents:
    """Sum of the tangents of all pairs of one side: Σ_i t_i(x_ia) = constant + v · e_a / ‖e_a‖.

    Attributes:
        side: the part of the mixture.
        slopes_BV: weights · slope.
        constant_B, v_BD: the sum's constant and v; computing them reads every embedding once.
    """

    side: MixturePart
    slopes_BV: Tensor
    constant_B: Tensor
    v_BD: Tensor

    @classmethod
    def of(cls, side: MixturePart) -> Self:
        """Sum the tangents of one side."""
        state, bounds = side.state, side.bounds
        slopes_BV = side.weights_BV * bounds.slope_V
        weights_BV = slopes_BV * (state.scale_V / state.norm_V)
        v_BD = weights_BV.new_zeros(weights_BV.shape[0], state.embeddings_VD.shape[1])
        for ids in state.tiles(state.embeddings_VD.shape[1]):
            v_BD.addmm_(weights_BV[:, ids], state.vectors(ids))
        return cls(side, slopes_BV, slopes_BV @ (1 - bounds.mean_x_V), state.geometry.dual(v_BD))

    def take(self, rows_F: Tensor) -> Self:
        """Some rows of the batch."""
        return type(self)(self.side.take(rows_F), self.slopes_BV[rows_F], self.constant_B[rows_F], self.v_BD[rows_F])


def from_tangents(
    sides: Sequence[Tangents], exact_rows: int, listed_tokens: int, anchors_S: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Lower and upper bounds on P, B × S each, reading the embeddings of the anchors once.

    Args:
        sides: the parts of the mixture.
        exact_rows: number of tokens per row, those that could change P most, whose pairs are all exact.
        listed_tokens: number of tokens per row, including these, whose listed pairs are exact.
        anchors_S: the anchors to bound; all by default.
    """
    low_BS = high_BS = torch.zeros((), dtype=torch.float64, device=sides[0].v_BD.device)
    for tangents in sides:
        side, bounds = tangents.side, tangents.side.bounds
        listed = _Listed.of(side, bounds.peak_V - bounds.low_V, max(listed_tokens, exact_rows))
        exact, listed = listed.first(exact_rows), listed.without_first(exact_rows)
        missed_B = exact.rest(bounds.missed_peak_V, side.weights_BV)
        side_BS = _exact_and_linear(tangents, exact, anchors_S)
        if listed.w_BN.numel():
            missed_B = missed_B - listed.sum(bounds.missed_peak_V - bounds.missed_next_V)
            linear_BNM = listed.of_token(bounds.slope_V) * (1 + listed.x_BNM() - listed.of_token(bounds.mean_x_V))
            correction_BA = listed.scatter(listed.values_BNM() - linear_BNM)
            found_BA = listed.scatter(listed.of_token(bounds.missed_next_V))
            if anchors_S is not None:
                correction_BA, found_BA = correction_BA[:, anchors_S], found_BA[:, anchors_S]
            side_BS = side_BS + correction_BA
            high_BS = high_BS - found_BA
        low_BS = low_BS + side_BS
        high_BS = high_BS + side_BS + missed_B[:, None]
    return low_BS, high_BS


def exactly(sides: Sequence[MixturePart], anchors_S: Tensor) -> Tensor:
    """P at some anchors, B × S, in fp64 from the embeddings, with the log Z of the states."""
    fused_BS = sides[0].weights_BV.new_zeros(len(sides[0].weights_BV), len(anchors_S))
    for side in sides:
        state = side.state
        for block in state.anchor_blocks(len(anchors_S)):
            anchors_C = anchors_S[block]
            for ids in state.tiles(max(len(anchors_C), state.embeddings_VD.shape[1])):
                rows_TC = (state.exponents(ids, anchors_C) - state.log_z_V[ids, None]).exp_()
                fused_BS[:, block].addmm_(side.weights_BV[:, ids], rows_TC)
    return fused_BS


def approximate_terms(side: MixturePart, row: int, anchors_R: Tensor) -> Tensor:
    """Each token's contribution to P at some anchors in one batch row, V × R, with the log Z of the state."""
    state = side.state
    parts = [
        (state.exponents(ids, anchors_R) - state.log_z_V[ids, None]).exp_().mul_(side.weights_BV[row, ids, None])
        for ids in state.tiles(state.embeddings_VD.shape[1])
    ]
    return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class _Listed:
    """The tokens of each batch row that could change P most, in descending order, with their listed pairs."""

    state: RelativeState
    ids_BN: Tensor
    w_BN: Tensor

    @classmethod
    def of(cls, side: MixturePart, moves_V: Tensor, tokens: int) -> Self:
        ids_BN = (side.weights_BV * moves_V).topk(min(tokens, side.state.n_tokens), dim=-1).indices
        return cls(side.state, ids_BN, side.weights_BV.gather(1, ids_BN))

    def first(self, tokens: int) -> Self:
        return type(self)(self.state, self.ids_BN[:, :tokens], self.w_BN[:, :tokens])

    def without_first(self, tokens: int) -> Self:
        return type(self)(self.state, self.ids_BN[:, tokens:], self.w_BN[:, tokens:])

    def sum(self, values_V: Tensor) -> Tensor:
        """Σ w · value over these tokens, B."""
        return (self.w_BN * values_V[self.ids_BN]).sum(dim=-1)

    def rest(self, values_V: Tensor, w_BV: Tensor) -> Tensor:
        """Σ w · value over all other tokens, B."""
        return (w_BV @ values_V - self.sum(values_V)).clamp_min_(0.0)

    def of_token(self, values_V: Tensor) -> Tensor:
        """One value per token, B × N × 1."""
        return values_V[self.ids_BN].unsqueeze(-1)

    def x_BNM(self) -> Tensor:
        """Exponents of the listed pairs."""
        return self.state.near_x_VM[self.ids_BN].double()

    def values_BNM(self) -> Tensor:
        """R at the listed pairs."""
        return (self.x_BNM() - self.of_token(self.state.log_z_V)).exp_()

    def scatter(self, values_BNM: Tensor) -> Tensor:
        """Σ w · value over the listed pairs of each anchor, B × A."""
        sums_BA = self.w_BN.new_zeros(len(self.w_BN), self.state.n_anchors)
        return self.scatter_into(sums_BA, values_BNM)

    def scatter_into(self, sums_BA: Tensor, values_BNM: Tensor, from_pair: int = 0) -> Tensor:
        """Add Σ w · value over the listed pairs of each anchor to `sums_BA`, leaving out the first `from_pair` of a token."""
        near_BNM = self.state.near_VM[self.ids_BN][..., from_pair:].long()
        values_BNM = values_BNM[..., from_pair:] if values_BNM.shape[-1] > 1 else values_BNM
        weighted_BNM = (values_BNM * self.w_BN[..., None]).expand_as(near_BNM)
        return sums_BA.scatter_add_(1, near_BNM.flatten(1), weighted_BNM.flatten(1))


def _exact_and_linear(tangents: Tangents, exact: _Listed, anchors_S: Tensor | None) -> Tensor:
    """Σ w R over the exact rows plus the tangents of all other rows, B × S, one block of anchors at a time."""
    state, ids_BH = exact.state, exact.ids_BN
    batch, exact_rows = ids_BH.shape
    ids_P = ids_BH.flatten()
    exact_PD = state.geometry.dual(state.vectors(ids_P))
    slopes_BH = tangents.slopes_BV.gather(1, ids_BH)
    constant_B = tangents.constant_B - (
        slopes_BH * (1 - exact.of_token(tangents.side.bounds.mean_x_V).squeeze(-1))
    ).sum(-1)
    pull_BH = slopes_BH * (state.scale_V / state.norm_V)[ids_BH]
    v_BD = tangents.v_BD - torch.einsum("bh,bhd->bd", pull_BH, exact_PD.view(batch, exact_rows, exact_PD.shape[1]))
    parts = []
    n_anchors = state.n_anchors if anchors_S is None else len(anchors_S)
    for block in state.anchor_blocks(n_anchors, len(ids_P)):
        own_C = state.anchor_ids_A[block if anchors_S is None else anchors_S[block]]
        anchors_CD, norm_C = state.vectors(own_C), state.norm_V[own_C]
        x_PC = (exact_PD @ anchors_CD.T).mul_((state.scale_V / state.norm_V)[ids_P, None]).div_(norm_C)
        x_PC = torch.where(ids_P[:, None] == own_C, state.scale_V[ids_P, None], x_PC)
        rows_PC = x_PC.sub_(state.log_z_V[ids_P, None]).exp_()
        exact_BC = torch.einsum("bh,bhc->bc", exact.w_BN, rows_PC.view(batch, exact_rows, len(own_C)))
        parts.append(exact_BC + constant_B[:, None] + (v_BD @ anchors_CD.T).div_(norm_C))
    return torch.cat(parts, dim=1)
