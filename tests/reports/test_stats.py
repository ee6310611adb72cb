"""Bootstrap against slow loops, scipy and known coverage."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.stats import (
    bca_interval,
    column_means,
    estimate,
    paired_difference,
    resample_means,
)


def matrix(records, columns, seed, missing=0.2):
    rng = np.random.default_rng(seed)
    scores_RC = rng.binomial(4, rng.uniform(0.2, 0.9, columns), size=(records, columns)) / 4
    scores_RC[rng.random(scores_RC.shape) < missing] = np.nan
    return scores_RC


def slow_means(scores_RC, resamples, seed):
    """Draw record by record, average column by column."""
    records, columns = scores_RC.shape
    rng = np.random.default_rng(seed)
    counts_BR = rng.multinomial(records, np.full(records, 1 / records), size=resamples)
    means = []
    for counts_R in counts_BR:
        drawn = [record for record, count in enumerate(counts_R) for _ in range(count)]
        row = []
        for column in range(columns):
            values = [scores_RC[record, column] for record in drawn if not np.isnan(scores_RC[record, column])]
            row.append(sum(values) / len(values) if values else np.nan)
        means.append(row)
    return np.array(means)


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_resampled_means_equal_a_loop_over_records(records, columns, seed):
    scores_RC = matrix(records, columns, seed)
    fast = resample_means(scores_RC, resamples=20, seed=seed)
    np.testing.assert_allclose(fast, slow_means(scores_RC, 20, seed), atol=1e-12)


def test_the_interval_is_the_one_of_scipy():
    scores_R = matrix(60, 1, 3, missing=0.0)[:, 0]
    ours = estimate(scores_R[:, None], np.ones(1), resamples=50_000)
    theirs = scipy.stats.bootstrap(
        (scores_R,), np.mean, n_resamples=50_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.value == pytest.approx(scores_R.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_an_average_of_axes_is_drawn_by_record_as_scipy_draws_pairs():
    scores_RC = matrix(80, 3, 5, missing=0.0)
    scores_RC[:, 1] = scores_RC[:, 0]  # probes of one record are not independent
    ours = estimate(scores_RC, np.full(3, 1 / 3), resamples=50_000)
    theirs = scipy.stats.bootstrap(
        tuple(scores_RC.T),
        lambda a, b, c, axis=-1: (a.mean(axis) + b.mean(axis) + c.mean(axis)) / 3,
        paired=True,
        n_resamples=50_000,
        method="BCa",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = estimate(rng.binomial(1, 0.9, size=(100, 1)).astype(float), np.ones(1), resamples=1000)
        hits += found.low <= 0.9 <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def test_a_paired_difference_is_narrower_than_an_unpaired_one():
    rng = np.random.default_rng(0)
    left_RC = rng.binomial(4, 0.6, size=(100, 3)) / 4
    right_RC = np.clip(left_RC - rng.binomial(1, 0.3, size=left_RC.shape) / 4, 0, 1)
    weights_C = np.full(3, 1 / 3)
    paired = paired_difference(left_RC, right_RC, weights_C)
    left, right = estimate(left_RC, weights_C), estimate(right_RC, weights_C)
    assert paired.value == pytest.approx(left.value - right.value)
    assert paired.half_width < 0.6 * np.hypot(left.half_width, right.half_width)
    assert paired.low > 0


def test_a_method_compared_with_itself_differs_by_nothing():
    scores_RC = matrix(40, 3, 1)
    same = paired_difference(scores_RC, scores_RC, np.full(3, 1 / 3))
    assert (same.value, same.low, same.high) == pytest.approx((0, 0, 0))


def test_different_records_cannot_be_paired():
    with pytest.raises(ValueError, match="not the same records"):
        paired_difference(np.ones((3, 2)), np.ones((4, 2)), np.ones(2))


def test_records_that_all_agree_give_an_interval_without_width():
    found = estimate(np.ones((50, 1)), np.ones(1))
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_an_empty_column_has_neither_mean_nor_interval():
    found = estimate(np.full((50, 1), np.nan), np.ones(1))
    assert np.isnan([found.value, found.low, found.high]).all()
    assert np.isnan(column_means(np.full((2, 1), np.nan))).all()
    assert np.isnan(estimate(np.empty((0, 1)), np.ones(1)).value)


def test_the_percentile_interval_stands_in_where_the_correction_is_undefined():
    draws_B = np.linspace(0, 1, 101)
    assert bca_interval(2.0, draws_B, np.array([0.1, 0.2])) == pytest.approx((0.025, 0.975))


def test_the_same_seed_gives_the_same_bits():
    scores_RC = matrix(30, 3, 2)
    assert estimate(scores_RC, np.ones(3), seed=4) == estimate(scores_RC.copy(), np.ones(3), seed=4)
    assert estimate(scores_RC, np.ones(3), seed=4) != estimate(scores_RC, np.ones(3), seed=5)
