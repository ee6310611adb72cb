"""Bootstrap confidence intervals over seeds and records.

All probes of a record and its scores on all models are resampled together, and so are records about one subject. All
seeds of a method edit the same records,
so seeds and records are crossed and resampled independently (the pigeonhole bootstrap, Owen 2007). With one seed this
is the ordinary bootstrap over records. docs/metrics.md has the formulas.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

Statistic = Callable[[Floats], Floats]
"""C statistics of one seed as a function of the weights of its R records: B × R weights to B × C values.

NaN where no record with positive weight has data for the statistic.
"""

RESAMPLES = 5000
LEVEL = 0.95

_TILE_ROWS = 512


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic with its bootstrap interval, in the same unit; NaN where there is nothing to average."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the width of the interval, which need not be symmetric about the value."""
        return (self.high - self.low) / 2


@dataclass(frozen=True, slots=True, eq=False)
class Resampled:
    """C statistics of one method: on all data, on each of B resamples, and without each record or seed in turn.

    `without_seed_SC` has no rows if there is only one seed, because one seed says nothing about the variation
    between seeds.
    """

    value_C: Floats
    draws_BC: Floats
    without_record_RC: Floats
    without_seed_SC: Floats

    def columns(self, start: int, stop: int) -> "Resampled":
        """Some of the statistics."""
        return _rows(lambda rows: rows[..., start:stop], [self])

    def estimate(self, weights_C: Floats) -> Estimate:
        """A weighted sum of the statistics with its 95% BCa interval (Efron 1987).

        The interval has width zero where all records and seeds agree.
        """
        value, draws_B, *jackknives = self._sums(weights_C)
        return Estimate(float(value), *bca_interval(float(value), draws_B, jackknives))

    def minus(self, other: "Resampled", weights_C: Floats) -> Estimate:
        """The difference to the same weighted sum of another method, with shared record resamples and separate seed resamples."""
        left, left_B, left_R, left_S = self._sums(weights_C)
        right, right_B, right_R, right_S = other._sums(weights_C)
        value = float(left - right)
        return Estimate(value, *bca_interval(value, left_B - right_B, [left_R - right_R, left_S, -right_S]))

    def p_value(self, other: "Resampled", weights_C: Floats) -> float:
        """Two-sided p-value of the difference to another method: twice the share of resamples on the other side of 0."""
        (_, left_B, *_), (_, right_B, *_) = self._sums(weights_C), other._sums(weights_C)
        draws_B = left_B - right_B
        draws_B = draws_B[~np.isnan(draws_B)]
        beyond = min(np.sum(draws_B <= 0), np.sum(draws_B >= 0))
        return float(min(1.0, 2 * (beyond + 1) / (len(draws_B) + 1)))

    def _sums(self, weights_C: Floats) -> Iterator[Floats]:
        """The weighted sum of each part; a statistic with weight 0 may be NaN."""
        used_C = weights_C != 0
        for part in (self.value_C, self.draws_BC, self.without_record_RC, self.without_seed_SC):
            yield part[..., used_C] @ weights_C[used_C]


def means(scores_RC: Floats, cluster_R: Indices | None = None) -> Statistic:
    """Mean of each column over the records that have a score in it; NaN marks a missing score.

    The weights of the statistic are those of the records or, where given, of their clusters.
    """
    present_RC = ~np.isnan(scores_RC)
    totals_RC, counts_RC = np.where(present_RC, scores_RC, 0.0), present_RC.astype(np.float64)
    if cluster_R is not None:
        totals_RC, counts_RC = (by_cluster(values_RC, cluster_R) for values_RC in (totals_RC, counts_RC))
    return ratios(totals_RC, counts_RC)


def by_cluster(values_RC: Floats, cluster_R: Indices) -> Floats:
    """Sum of the values of each cluster of records: K × C, where clusters are numbered from 0 to K - 1."""
    sums_KC = np.zeros((int(cluster_R.max(initial=-1)) + 1, values_RC.shape[1]))
    np.add.at(sums_KC, cluster_R, values_RC)
    return sums_KC


def shares(scores_SRC: Floats, cluster_R: Indices) -> Floats:
    """Contribution of each cluster of records to the mean of each column over the seeds that have it: K × C."""
    present_SRC = ~np.isnan(scores_SRC)
    counts_SC = present_SRC.sum(axis=1)
    counted_C = np.maximum(1, (counts_SC > 0).sum(axis=0))
    added_SRC = np.where(present_SRC, scores_SRC, 0.0) / np.maximum(1, counts_SC)[:, None, :]
    return by_cluster(added_SRC.sum(axis=0) / counted_C, cluster_R)


def ratios(totals_RC: Floats, counts_RC: Floats) -> Statistic:
    """Sum of each column's totals over the sum of its counts: a mean in which each probe, not each record, counts once."""
    return lambda weights_BR: quotient(weights_BR @ totals_RC, weights_BR @ counts_RC)


def resample(
    by_seed: Sequence[Statistic],
    groups: Sequence[int],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    method: int = 0,
) -> Resampled:
    """Draw records and seeds with replacement, and average the statistics of the drawn seeds on the drawn records.

    Of S > 1 seeds only S - 1 are drawn: S draws would show only (S - 1) / S of the variance between seeds, two thirds
    of it for three seeds (Rao and Wu 1988). Where a seed lacks a statistic, the average is over the other seeds.

    Args:
        by_seed: statistics of each seed, all on the same R records.
        groups: sizes of the groups in which the records come, R in total; each group is resampled separately.
        resamples: number of resamples B.
        seed: seed of the random generator. The same groups and seed draw the same records, which makes comparisons of
            methods paired.
        method: methods that are compared with each other need different numbers, so that their seeds are drawn
            independently.
    """
    records, seeds = sum(groups), len(by_seed)
    weights_BR = _record_counts(tuple(groups), resamples, seed)
    weights_BS = _seed_counts(seeds, resamples, seed, method)
    everything_SC = np.concatenate([statistic(np.ones((1, records))) for statistic in by_seed])
    others_SS = 1.0 - np.eye(seeds)
    return Resampled(
        value_C=_over_seeds(everything_SC[:, None], np.ones((1, seeds)))[0],
        draws_BC=_over_seeds(np.stack([statistic(weights_BR) for statistic in by_seed]), weights_BS),
        without_record_RC=_over_seeds(
            np.stack([_leave_one_out(statistic, records) for statistic in by_seed]), np.ones((records, seeds))
        ),
        without_seed_SC=_over_seeds(everything_SC[:, None], others_SS) if seeds > 1 else everything_SC[:0],
    )


def resample_means(
    scores_SRC: Floats,
    cluster_R: Indices | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    method: int = 0,
) -> Resampled:
    """Resampled column means of S seeds × R records; all NaN if there are no records.

    Args:
        scores_SRC: NaN marks a missing score.
        cluster_R: number of each record's cluster, from 0; records of one cluster are drawn together. Default: each alone.
        resamples, seed, method: see `resample`.
    """
    units = scores_SRC.shape[1] if cluster_R is None else int(cluster_R.max(initial=-1)) + 1
    by_seed = [means(scores_RC, cluster_R) for scores_RC in scores_SRC]
    return resample(by_seed, [units], resamples=resamples, seed=seed, method=method)


def side_by_side(parts: Sequence[Resampled]) -> Resampled:
    """The statistics of several, resampled together, as one."""
    return _rows(lambda *of_parts: np.concatenate(of_parts, axis=-1), parts)


def choose(candidates: Sequence[Resampled], weights_C: Floats) -> Resampled:
    """The candidate with the highest weighted sum, chosen again in every resample, so that the interval includes the choice.

    A candidate that lacks a statistic never wins over one that does not.
    """

    def best(*of_candidates: Floats) -> Floats:
        stacked_TNC = np.stack([np.atleast_2d(rows) for rows in of_candidates])
        sums_TN = stacked_TNC @ weights_C
        winner_N = np.where(np.isnan(sums_TN), -np.inf, sums_TN).argmax(axis=0)
        chosen: Floats = stacked_TNC[winner_N, np.arange(len(winner_N))]
        return chosen.reshape(of_candidates[0].shape)

    return _rows(best, candidates) if len(candidates) > 1 else candidates[0]


def _rows(function: Callable[..., Floats], parts: Sequence[Resampled]) -> Resampled:
    names = ("value_C", "draws_BC", "without_record_RC", "without_seed_SC")
    return Resampled(**{name: function(*(getattr(part, name) for part in parts)) for name in names})


def bca_interval(
    value: float, draws_B: Floats, jackknives: Sequence[Floats], level: float = LEVEL
) -> tuple[float, float]:
    """Bias-corrected and accelerated interval; the percentile interval where the correction is undefined.

    Args:
        value: the statistic on all data.
        draws_B: the statistic on each resample; NaN (an axis without any record) is ignored.
        jackknives: the statistic without each record in turn, and without each seed in turn.
        level: coverage in (0, 1).
    """
    draws_B = draws_B[~np.isnan(draws_B)]
    if np.isnan(value) or draws_B.size == 0:
        return (np.nan, np.nan)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    below = (np.mean(draws_B < value) + np.mean(draws_B <= value)) / 2
    known = [jackknife[~np.isnan(jackknife)] for jackknife in jackknives]
    distances = np.concatenate([np.empty(0), *(left_out.mean() - left_out for left_out in known if left_out.size)])
    spread = float(np.sum(distances**2))
    if 0 < below < 1 and spread > 0:
        bias = ndtri(below)
        acceleration = float(np.sum(distances**3)) / (6 * spread**1.5)
        shifted = bias + ndtri(tails)
        tails = ndtr(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(draws_B, tails)
    return float(low), float(high)


def quotient(total: Floats, count: Floats) -> Floats:
    """Elementwise quotient, NaN where the count is 0."""
    ratio: Floats = np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
    return ratio


def _over_seeds(values_SNC: Floats, weights_NS: Floats) -> Floats:
    """Weighted mean over the seeds that have a value: N × C."""
    present_SNC = ~np.isnan(values_SNC)
    total_NC = np.einsum("snc,ns->nc", np.where(present_SNC, values_SNC, 0.0), weights_NS)
    return quotient(total_NC, np.einsum("snc,ns->nc", present_SNC.astype(np.float64), weights_NS))


def _leave_one_out(statistic: Statistic, records: int) -> Floats:
    """The statistic without each record in turn: R × C, computed in tiles, never R × R at once."""
    tiles = [
        statistic(1.0 - np.eye(min(_TILE_ROWS, records - start), records, start))
        for start in range(0, max(1, records), _TILE_ROWS)
    ]
    return np.concatenate(tiles)


@lru_cache(maxsize=8)
def _record_counts(groups: tuple[int, ...], resamples: int, seed: int) -> Floats:
    """How often each record is drawn in each resample: B × R. The counts of a group add up to its size."""
    rng = np.random.default_rng(seed)
    counts_BR = np.concatenate([_drawn(rng, size, size, resamples) for size in groups], axis=1)
    counts_BR.setflags(write=False)
    return counts_BR


def _seed_counts(seeds: int, resamples: int, seed: int, method: int) -> Floats:
    """How often each seed is drawn in each resample: B × S. Each row adds up to S - 1, or to 1 for a single seed."""
    return _drawn(np.random.default_rng([seed, method]), seeds, max(1, seeds - 1), resamples)


def _drawn(rng: np.random.Generator, size: int, draws: int, resamples: int) -> Floats:
    if not size:
        return np.empty((resamples, 0))
    return rng.multinomial(draws, np.full(size, 1 / size), size=resamples).astype(np.float64)
