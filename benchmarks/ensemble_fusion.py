"""Fusion and decoding alone: with the certified arg-max, and with both relative transfer matrices in memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from benchmarks.ensemble_data import Draw, draw_steps
from benchmarks.ensemble_pairs import BuiltPair
from benchmarks.timing import Candidate, Measured, taking_turns
from methods.onceedit.bounds import exactly, from_lists
from methods.onceedit.certify import LISTED_L0, TIE
from methods.onceedit.decoders import ColumnDecoder, Decoded, Decoder, OwnerDecoder, SearchDecoder
from methods.onceedit.fusion import Fused, Projection
from methods.onceedit.matrix import TransferMatrix
from methods.onceedit.relative import RelativeState

OWNER, COLUMN = "owner", "column"
WHOLE_OWNER, WHOLE_SEARCH = "R, owner", "R, search"
L0, L0_COMPILED = "L0", "L0 compiled"


@dataclass(frozen=True, eq=False)
class InMemory(Projection):
    """A projection with all of R in memory as a single tile, regardless of its size."""

    matrix: TransferMatrix

    @classmethod
    def of(cls, state: RelativeState) -> Self:
        """Fill R in place, so that there is never more than one copy."""
        tiled = TransferMatrix.of(state, materialise_below_bytes=0)
        matrix_VA = state.rows(0, 1).new_empty(state.n_tokens, state.n_anchors)
        for start, stop in tiled.tiles():
            matrix_VA[start:stop] = tiled.rows(start, stop)
        return cls(state, TransferMatrix(state, state.n_tokens, matrix_VA))


class WholeOwnerDecoder:
    """Returns the owner of the arg-max of the full fused distribution."""

    def decode(self, fused: Fused, logits_l_BV: torch.Tensor) -> Decoded:
        """See `Decoder`."""
        anchors_B = fused.probs_BA.argmax(dim=-1)
        return Decoded(fused.llm.state.owner_A[anchors_B], anchors_B)


def draws_of(pair: BuiltPair, batch: int, rounds: int, seed: int) -> list[Draw]:
    """Draw the inputs of one decoding step per round."""
    generator = torch.Generator().manual_seed(seed)
    return [draw_steps(pair.tables, batch, generator) for _ in range(rounds)]


def measure(
    pair: BuiltPair,
    whole: tuple[InMemory, InMemory] | None,
    draws: Sequence[Draw],
    reference_repeats: int,
    compiled: Callable[..., Any] | None,
) -> dict[str, Any]:
    """Measure time, memory, levels and agreement of all decoders for one shape and batch size.

    Args:
        pair: states of both models.
        whole: the same with both R in memory; None skips the reference.
        draws: one decoding step per round.
        reference_repeats: number of rounds that include the reference.
        compiled: compiled `bounds.from_lists`, timed against the original; None skips both.
    """
    candidates = [
        Candidate(OWNER, decoding(pair.llm, pair.plugin, OwnerDecoder(), draws)),
        Candidate(COLUMN, decoding(pair.llm, pair.plugin, ColumnDecoder(), draws)),
    ]
    if whole is not None:
        every = max(1, len(draws) // reference_repeats)
        candidates += [
            Candidate(WHOLE_OWNER, decoding(*whole, WholeOwnerDecoder(), draws), every),
            Candidate(WHOLE_SEARCH, decoding(*whole, SearchDecoder(target="onehot"), draws), every),
        ]
    if compiled is not None:
        candidates += [
            Candidate(L0, _first_level(pair, draws, from_lists)),
            Candidate(L0_COMPILED, _first_level(pair, draws, compiled)),
        ]
    found = taking_turns(candidates, len(draws), pair.tables.llm_VD.device)
    results = {name: measured.summary() for name, measured in found.items()}
    if whole is not None:
        for name, measured in found.items():
            results[name]["speed_up"] = found[WHOLE_SEARCH].median / measured.median
            results[name]["speed_up_mean"] = found[WHOLE_SEARCH].mean / measured.mean
    return {
        "candidates": results,
        "levels": _levels(found[OWNER]),
        "agreement": agreement(pair, found, draws),
    }


def decoding(llm: Projection, plugin: Projection, decoder: Decoder, draws: Sequence[Draw]) -> Callable[[int], Decoded]:
    """A timed run from logits and probabilities to a token."""

    def decode(turn: int) -> Decoded:
        return decoder.decode(_fused(llm, plugin, draws[turn]), draws[turn].logits_l_BV)

    return decode


def _first_level(pair: BuiltPair, draws: Sequence[Draw], bounds: Callable[..., Any]) -> Callable[[int], None]:
    """A timed run from logits and probabilities to the bounds of L0, which are discarded."""

    def bound(turn: int) -> None:
        bounds(_fused(pair.llm, pair.plugin, draws[turn]).sides(), LISTED_L0)

    return bound


def _fused(llm: Projection, plugin: Projection, draw: Draw) -> Fused:
    return Fused(llm, plugin, draw.logits_l_BV.softmax(dim=-1), draw.probs_s_BU, draw.alpha_B)


def _levels(measured: Measured) -> dict[str, float]:
    """Fraction of rows decided at each level."""
    level_N = torch.cat([decoded.certificate.level_B for decoded in measured.results.values()])
    return {f"l{level}": float((level_N == level).double().mean()) for level in (0, 1, 2)}


def agreement(pair: BuiltPair, found: Mapping[str, Measured], draws: Sequence[Draw]) -> dict[str, int]:
    """Count how often the decoders agree.

    `wrong` counts rows where the reference's fp32 arg-max is in fact more probable than the certified anchor.
    """
    owner, column = found[OWNER].results, found[COLUMN].results
    counts = {
        "rows": sum(len(decoded.tokens_B) for decoded in owner.values()),
        "owner_is_column": sum(int((owner[turn].tokens_B == column[turn].tokens_B).sum()) for turn in owner),
    }
    if WHOLE_SEARCH not in found:
        return counts
    counts |= dict.fromkeys(("checked_rows", "anchors_equal", "wrong", "column_is_search"), 0)
    for turn, reference in found[WHOLE_SEARCH].results.items():
        anchors_B, reference_B = owner[turn].anchors_B, reference.anchors_B
        differs_B = anchors_B != reference_B
        counts["checked_rows"] += len(anchors_B)
        counts["anchors_equal"] += int((~differs_B).sum())
        counts["column_is_search"] += int(((column[turn].tokens_B == reference.tokens_B) & ~differs_B).sum())
        for row_1 in differs_B.nonzero():
            sides = _fused(pair.llm, pair.plugin, draws[turn]).sides(row_1)
            certified, other = exactly(sides, torch.cat([anchors_B[row_1], reference_B[row_1]]))[0].tolist()
            counts["wrong"] += certified < other * (1 - TIE)
    return counts
