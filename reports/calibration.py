"""How well the routing scores of a method on a model separate edits from other prompts, with bootstrap intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.evaluation.probes import AXES
from harness.evaluation.scope import BINS, INSIDE, OUTSIDE, SHARES, is_on_the_right_side
from reports.stats import RESAMPLES, Estimate, Floats, Statistic, quotient, ratios, resample


class Measure(NamedTuple):
    """An estimated quantity: `mean`, a share or `auroc` of the prompts of an axis; AUROC is `against` other axes."""

    quantity: str
    axis: str
    against: str = ""


_RATIOS = (*(Measure("mean", axis) for axis in AXES), *(Measure(share, axis) for axis, share in SHARES.items()))
_AUROCS = tuple(Measure("auroc", axis, against) for axis in INSIDE for against in OUTSIDE)
MEASURES = (*_RATIOS, *_AUROCS)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibration of a method on a model; NaN on an axis without questions.

    Attributes:
        estimates: all of `MEASURES`, computed over the questions of each seed and averaged over seeds.
        histograms: by axis, the share of questions in each bin, averaged over seeds.
        questions: by axis, the number of questions of one seed.
    """

    estimates: Mapping[Measure, Estimate]
    histograms: Mapping[str, Floats]
    questions: Mapping[str, int]


def estimate_calibration(by_seed: Sequence[pd.DataFrame], *, resamples: int = RESAMPLES) -> Calibration:
    """All measures with intervals, from the questions of each seed (columns `axis`, `cluster`, `scope`).

    Clusters of edited and of unrelated records are resampled separately, so that the number of each is always the same.
    """
    everything = pd.concat(by_seed)
    is_unrelated = everything["axis"] == "locality_unrelated"
    groups = [sorted(set(everything.loc[is_in, "cluster"])) for is_in in (~is_unrelated, is_unrelated)]
    order = [record for group in groups for record in group]
    statistics = [all_measures(scopes, order) for scopes in by_seed]
    resampled = resample(statistics, [len(group) for group in groups], resamples=resamples)
    values_by_seed = [{axis: _values(scopes, axis) for axis in AXES} for scopes in by_seed]
    return Calibration(
        estimates={
            measure: resampled.estimate(unit_C) for measure, unit_C in zip(MEASURES, np.eye(len(MEASURES)), strict=True)
        },
        histograms={axis: np.mean([_histogram(values[axis]) for values in values_by_seed], axis=0) for axis in AXES},
        questions={axis: max(len(values[axis]) for values in values_by_seed) for axis in AXES},
    )


def all_measures(scopes: pd.DataFrame, order: Sequence[str]) -> Statistic:
    """All measures of one seed, in the order of `MEASURES`, as a function of the weights of the records in `order`."""
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
    """The questions of one axis: N routing scores, and the index of each question's record among R records."""

    scopes_N: Floats
    record_N: NDArray[np.intp]
    records: int

    @classmethod
    def of(cls, scopes: pd.DataFrame, axis: str, order: pd.Index) -> "_Questions":
        """The questions of one seed; possibly none."""
        records = order.get_indexer(pd.Index(scopes.loc[scopes["axis"] == axis, "cluster"]))
        return cls(_values(scopes, axis), records, len(order))

    @property
    def count_R(self) -> Floats:
        """Number of questions per record."""
        return np.bincount(self.record_N, minlength=self.records).astype(np.float64)

    def per_record(self, values_N: Floats) -> Floats:
        """Sum of a value over the questions of each record."""
        return np.bincount(self.record_N, values_N, minlength=self.records).astype(np.float64)


def _wanted(quantity: str, axis: str, scopes_N: Floats) -> Floats:
    return scopes_N if quantity == "mean" else is_on_the_right_side(axis, scopes_N).astype(np.float64)


def _aurocs(inside: _Questions, questions: Mapping[str, _Questions]) -> Statistic:
    """One column per entry of `OUTSIDE`: over all pairs of questions, weighted by the product of their records' weights."""
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
    """R × R counts of how often a question of one record scores above a question of another; ties count one half."""
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
