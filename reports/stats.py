"""Bootstrap intervals over records: the probes of a record, and its scores on all models, stay together."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Floats = NDArray[np.float64]

RESAMPLES = 5000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its bootstrap interval, all in the unit of the scores; NaN where there is nothing to average."""

    value: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Half the length of the interval, which need not be symmetric about the value."""
        return (self.high - self.low) / 2


def column_means(scores_RC: Floats) -> Floats:
    """Mean of each column over the records that have a score there; NaN for an empty column."""
    present_RC = ~np.isnan(scores_RC)
    return _ratio(np.where(present_RC, scores_RC, 0.0).sum(axis=0), present_RC.sum(axis=0))


def resample_means(scores_RC: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Column means of `resamples` draws of whole records with replacement.

    The same number of records and the same seed draw the same records, so two matrices with the same rows are paired.

    Args:
        scores_RC: R records × C columns (axes, or axes of several models); NaN where a record lacks that axis.
        resamples: number of draws B.
        seed: of the draws.

    Returns:
        B × C means; NaN where no drawn record has that axis.
    """
    counts_BR = _draw_counts(len(scores_RC), resamples, seed)
    present_RC = ~np.isnan(scores_RC)
    return _ratio(counts_BR @ np.where(present_RC, scores_RC, 0.0), counts_BR @ present_RC.astype(np.float64))


def estimate(scores_RC: Floats, weights_C: Floats, *, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """A weighted sum of column means with its 95 % BCa interval (Efron 1987).

    One column with weight 1 gives a single score, three axes with weights 1/3 their Avg, and the axes of several
    models side by side the Score over models, in which a record is drawn for all models at once.

    Where all records agree the interval has no width: the bootstrap cannot see what no record shows.
    """
    if len(scores_RC) == 0:
        return Estimate(np.nan, np.nan, np.nan)
    value = float(column_means(scores_RC) @ weights_C)
    draws_B = resample_means(scores_RC, resamples=resamples, seed=seed) @ weights_C
    jackknife_R = _leave_one_out(scores_RC) @ weights_C
    low, high = bca_interval(value, draws_B, jackknife_R)
    return Estimate(value, low, high)


def paired_difference(
    left_RC: Floats, right_RC: Floats, weights_C: Floats, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Left minus right, for two methods scored on the same records (row for row), with its 95 % interval.

    Raises:
        ValueError: if the two matrices have not the same shape.
    """
    if left_RC.shape != right_RC.shape:
        raise ValueError(f"not the same records: {left_RC.shape} and {right_RC.shape}")
    both_RC = np.concatenate([left_RC, right_RC], axis=1)
    return estimate(both_RC, np.concatenate([weights_C, -weights_C]), resamples=resamples, seed=seed)


def bca_interval(value: float, draws_B: Floats, jackknife_R: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Bias-corrected and accelerated interval; the percentile interval where the correction is undefined.

    Args:
        value: the statistic on all records.
        draws_B: the statistic on each resample; NaN draws (an axis without any record) are left out.
        jackknife_R: the statistic without each record in turn.
        level: coverage in (0, 1).
    """
    draws_B = draws_B[~np.isnan(draws_B)]
    if np.isnan(value) or draws_B.size == 0:
        return (np.nan, np.nan)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    below = (np.mean(draws_B < value) + np.mean(draws_B <= value)) / 2
    distance_R = np.nanmean(jackknife_R) - jackknife_R
    spread = float(np.nansum(distance_R**2))
    if 0 < below < 1 and spread > 0:
        bias = ndtri(below)
        acceleration = float(np.nansum(distance_R**3)) / (6 * spread**1.5)
        shifted = bias + ndtri(tails)
        tails = ndtr(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(draws_B, tails)
    return float(low), float(high)


def _leave_one_out(scores_RC: Floats) -> Floats:
    present_RC = ~np.isnan(scores_RC)
    filled_RC = np.where(present_RC, scores_RC, 0.0)
    return _ratio(filled_RC.sum(axis=0) - filled_RC, present_RC.sum(axis=0) - present_RC.astype(np.float64))


def _ratio(total: Floats, count: Floats) -> Floats:
    count = np.asarray(count, dtype=np.float64)
    ratio: Floats = np.divide(total, count, out=np.full(np.shape(total), np.nan), where=count > 0)
    return ratio


@lru_cache(maxsize=8)
def _draw_counts(records: int, resamples: int, seed: int) -> Floats:
    """How often each record is drawn in each resample: B × R, every row sums to R."""
    rng = np.random.default_rng(seed)
    counts_BR = rng.multinomial(records, np.full(records, 1 / records), size=resamples).astype(np.float64)
    counts_BR.setflags(write=False)
    return counts_BR
