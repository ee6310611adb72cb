"""How one method decides on one model which prompts are in scope, with intervals over seeds and records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.evaluation.probes import AXES
from harness.evaluation.scope import BINS, INSIDE, OUTSIDE, SHARES, is_on_the_right_side
from reports.stats import RESAMPLES, Estimate, Floats, Statistic, quotient, ratios, resample


class Figure(NamedTuple):
    """What is estimated: `mean`, a share or `auroc` of an axis, and for the last what the axis is told from."""

    quantity: str
    axis: str
    against: str = ""


_RATIOS = (*(Figure("mean", axis) for axis in AXES), *(Figure(share, axis) for axis, share in SHARES.items()))
_AUROCS = tuple(Figure("auroc", axis, against) for axis in INSIDE for against in OUTSIDE)
FIGURES = (*_RATIOS, *_AUROCS)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A method on a model. What was not asked is NaN.

    Attributes:
        figures: those of `FIGURES`, over the questions of a seed, averaged over seeds.
        histograms: by axis the share of questions in each of the bins, averaged over seeds.
        questions: by axis, of one seed.
    """

    figures: Mapping[Figure, Estimate]
    histograms: Mapping[str, Floats]
    questions: Mapping[str, int]


def calibration(by_seed: Sequence[pd.DataFrame], *, resamples: int = RESAMPLES) -> Calibration:
    """Figures and intervals from the questions of each seed: `axis`, `record_id`, `scope`.

    Edited and unrelated records are drawn apart, so that every draw has as many of both as were asked.
    """
    everything = pd.concat(by_seed)
    is_unrelated = everything["axis"] == "locality_unrelated"
    groups = [sorted(set(everything.loc[is_in, "record_id"])) for is_in in (~is_unrelated, is_unrelated)]
    order = [record for group in groups for record in group]
    statistics = [all_figures(scopes, order) for scopes in by_seed]
    resampled = resample(statistics, [len(group) for group in groups], resamples=resamples)
    values_by_seed = [{axis: _values(scopes, axis) for axis in AXES} for scopes in by_seed]
    return Calibration(
        figures={
            figure: resampled.estimate(unit_C) for figure, unit_C in zip(FIGURES, np.eye(len(FIGURES)), strict=True)
        },
        histograms={axis: np.mean([_histogram(values[axis]) for values in values_by_seed], axis=0) for axis in AXES},
        questions={axis: max(len(values[axis]) for values in values_by_seed) for axis in AXES},
    )


def all_figures(scopes: pd.DataFrame, order: Sequence[str]) -> Statistic:
    """All figures of one seed, in the order of `FIGURES`, as a function of how often each record of `order` counts."""
    questions: dict[str, _Questions] = {axis: _Questions.of(scopes, axis, pd.Index(order)) for axis in AXES}
    totals = [
        questions[axis].per_record(_wanted(quantity, axis, questions[axis].scopes_N)) for quantity, axis, _ in _RATIOS
    ]
    counts = [questions[axis].count_R for _, axis, _ in _RATIOS]
    parts = [ratios(np.stack(totals, axis=1), np.stack(counts, axis=1))]
    parts += [_aurocs(questions[axis], questions) for axis in INSIDE]
    return lambda weights_BR: np.concatenate([part(weights_BR) for part in parts], axis=1)


@dataclass(frozen=True, slots=True)
class _Questions:
    """The questions of one axis: N scopes, the place of the record of each among R records."""

    scopes_N: Floats
    record_N: NDArray[np.intp]
    records: int

    @classmethod
    def of(cls, scopes: pd.DataFrame, axis: str, order: pd.Index) -> "_Questions":
        """Those of a seed; none where the axis has none."""
        records = order.get_indexer(pd.Index(scopes.loc[scopes["axis"] == axis, "record_id"]))
        return cls(_values(scopes, axis), records, len(order))

    @property
    def count_R(self) -> Floats:
        """Number of questions of each record."""
        return np.bincount(self.record_N, minlength=self.records).astype(np.float64)

    def per_record(self, values_N: Floats) -> Floats:
        """Sum of a value over the questions of each record."""
        return np.bincount(self.record_N, values_N, minlength=self.records).astype(np.float64)


def _wanted(quantity: str, axis: str, scopes_N: Floats) -> Floats:
    return scopes_N if quantity == "mean" else is_on_the_right_side(axis, scopes_N).astype(np.float64)


def _aurocs(inside: _Questions, questions: Mapping[str, _Questions]) -> Statistic:
    """One column per entry of `OUTSIDE`: all pairs of questions, each counted as often as its two records together."""
    sides = {axis: questions[axis] for axis in OUTSIDE["both"]}
    rows = np.flatnonzero(inside.count_R)
    columns = {axis: np.flatnonzero(side.count_R) for axis, side in sides.items()}
    wins_IO = {axis: _wins(inside, side)[np.ix_(rows, columns[axis])] for axis, side in sides.items()}

    def statistic(weights_BR: Floats) -> Floats:
        inside_BI, inside_B = weights_BR[:, rows], weights_BR @ inside.count_R
        won_B, pairs_B = {}, {}
        for axis, side in sides.items():
            won_B[axis] = np.einsum("bo,bo->b", inside_BI @ wins_IO[axis], weights_BR[:, columns[axis]])
            pairs_B[axis] = inside_B * (weights_BR @ side.count_R)
        of_each = [
            quotient(np.sum([won_B[axis] for axis in axes], axis=0), np.sum([pairs_B[axis] for axis in axes], axis=0))
            for axes in OUTSIDE.values()
        ]
        return np.stack(of_each, axis=1)

    return statistic


def _wins(inside: _Questions, outside: _Questions) -> Floats:
    """How often a question of one record is above a question of another, ties counted half: R × R."""
    wins_RR = np.zeros((inside.records, outside.records))
    for record in np.unique(outside.record_N):
        others = np.sort(outside.scopes_N[outside.record_N == record])
        below = np.searchsorted(others, inside.scopes_N, "left") + np.searchsorted(others, inside.scopes_N, "right")
        wins_RR[:, record] = inside.per_record(below / 2)
    return wins_RR


def _histogram(scopes_N: Floats) -> Floats:
    counts = np.histogram(scopes_N, bins=BINS, range=(0, 1))[0].astype(np.float64)
    return quotient(counts, np.full(BINS, float(len(scopes_N))))


def _values(scopes: pd.DataFrame, axis: str) -> Floats:
    return scopes.loc[scopes["axis"] == axis, "scope"].to_numpy(dtype=np.float64)
