"""Bootstrap against slow loops, scipy and known coverage."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.stats import (
    bca_interval,
    choose,
    ratios,
    resample,
    resample_means,
    shares,
)


def cube(seeds, records, columns, seed, missing=0.2):
    rng = np.random.default_rng(seed)
    scores_SRC = rng.binomial(4, rng.uniform(0.2, 0.9, columns), size=(seeds, records, columns)) / 4
    scores_SRC[rng.random(scores_SRC.shape) < missing] = np.nan
    return scores_SRC


def estimate(scores_SRC, weights_C, **options):
    """A weighted sum of means with its interval."""
    return resample_means(scores_SRC, **options).estimate(weights_C)


def difference(left_SRC, right_SRC, weights_C, **options):
    """Left minus right of two methods scored on the same records, with its interval."""
    left, right = (resample_means(scores, method=m, **options) for m, scores in enumerate((left_SRC, right_SRC)))
    return left.minus(right, weights_C)


def slow_draws(scores_SRC, resamples, seed):
    """Draw seed by seed and record by record, average column by column."""
    seeds, records, columns = scores_SRC.shape
    of_records, of_seeds = np.random.default_rng(seed), np.random.default_rng([seed, 0])
    drawn_records = of_records.multinomial(records, np.full(records, 1 / records), size=resamples)
    drawn_seeds = of_seeds.multinomial(max(1, seeds - 1), np.full(seeds, 1 / seeds), size=resamples)
    draws = []
    for counts_R, counts_S in zip(drawn_records, drawn_seeds, strict=True):
        row = []
        for column in range(columns):
            of_seed = []
            for one, count in enumerate(counts_S):
                values = [scores_SRC[one, r, column] for r, n in enumerate(counts_R) for _ in range(n)]
                values = [value for value in values if not np.isnan(value)]
                of_seed += [sum(values) / len(values)] * int(count) if values else []
            row.append(sum(of_seed) / len(of_seed) if of_seed else np.nan)
        draws.append(row)
    return np.array(draws)


@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 4), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_draws_equal_a_loop_over_seeds_and_records(seeds, records, columns, seed):
    scores_SRC = cube(seeds, records, columns, seed)
    fast = resample_means(scores_SRC, resamples=20, seed=seed).draws_BC
    np.testing.assert_allclose(fast, slow_draws(scores_SRC, 20, seed), atol=1e-12)


@given(st.integers(1, 4), st.integers(1, 20), st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_leaving_one_out_is_computing_without_it(seeds, records, seed):
    scores_SRC = cube(seeds, records, 2, seed)
    found = resample_means(scores_SRC, resamples=2)

    def value(part_SRC):
        return resample_means(part_SRC, resamples=2).value_C

    for record in range(records):
        without = value(np.delete(scores_SRC, record, axis=1))
        np.testing.assert_allclose(found.without_record_RC[record], without, atol=1e-12)
    assert len(found.without_seed_SC) == (seeds if seeds > 1 else 0)
    for one, without in enumerate(found.without_seed_SC):
        np.testing.assert_allclose(without, value(np.delete(scores_SRC, one, axis=0)), atol=1e-12)


def test_leaving_one_out_does_not_depend_on_the_tiles():
    scores_SRC = cube(1, 1200, 1, 0, missing=0.0)
    total = scores_SRC.sum()
    slow = [(total - score) / 1199 for score in scores_SRC[0, :, 0]]
    np.testing.assert_allclose(resample_means(scores_SRC, resamples=2).without_record_RC[:, 0], slow, atol=1e-12)


def test_the_interval_of_one_seed_is_the_one_of_scipy():
    scores_R = cube(1, 60, 1, 3, missing=0.0)[0, :, 0]
    ours = estimate(scores_R[None, :, None], np.ones(1), resamples=50_000)
    theirs = scipy.stats.bootstrap(
        (scores_R,), np.mean, n_resamples=50_000, method="BCa", rng=np.random.default_rng(1)
    ).confidence_interval
    assert ours.value == pytest.approx(scores_R.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_an_average_of_axes_is_drawn_by_record_as_scipy_draws_pairs():
    scores_RC = cube(1, 80, 3, 5, missing=0.0)[0]
    scores_RC[:, 1] = scores_RC[:, 0]  # probes of one record are not independent
    ours = estimate(scores_RC[None], np.full(3, 1 / 3), resamples=50_000)
    theirs = scipy.stats.bootstrap(
        tuple(scores_RC.T),
        lambda a, b, c, axis=-1: (a.mean(axis) + b.mean(axis) + c.mean(axis)) / 3,
        paired=True,
        n_resamples=50_000,
        method="BCa",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_a_record_can_count_once_per_probe():
    totals_RC, counts_RC = np.array([[1.0], [0.0], [4.0]]), np.array([[1.0], [0.0], [5.0]])
    found = resample([ratios(totals_RC, counts_RC)], [3], resamples=500)
    assert found.value_C[0] == pytest.approx(5 / 6)
    assert set(np.round(found.draws_BC[~np.isnan(found.draws_BC)], 6)) >= {1.0, 0.8, np.round(6 / 7, 6)}
    assert np.isnan(found.draws_BC).any(), "three times the record without a probe"


def test_groups_of_records_keep_their_sizes_in_every_draw():
    is_second_RC = np.array([[0.0]] * 6 + [[1.0]] * 2)
    apart = resample([ratios(is_second_RC, np.ones((8, 1)))], [6, 2], resamples=50).draws_BC
    together = resample([ratios(is_second_RC, np.ones((8, 1)))], [8], resamples=50).draws_BC
    assert set(apart[:, 0]) == {0.25}
    assert len(set(together[:, 0])) > 1


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = estimate(rng.binomial(1, 0.9, size=(1, 100, 1)).astype(float), np.ones(1), resamples=1000)
        hits += found.low <= 0.9 <= found.high
    assert 0.89 <= hits / 200 <= 0.99


def crossed(rng, seeds, records, seed_std, record_std, noise_std):
    """Scores with an effect of each seed, one of each record, and noise; the truth is 0."""
    of_seed_S11 = rng.normal(0, seed_std, (seeds, 1, 1))
    of_record_1R1 = rng.normal(0, record_std, (1, records, 1))
    return of_seed_S11 + of_record_1R1 + rng.normal(0, noise_std, (seeds, records, 1))


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_draws_spread_as_the_means_of_seeds_and_of_records_do(seeds):
    """Without noise the variance is s²/S of the seeds plus s²/R of the records, for any number of seeds."""
    scores_SRC = crossed(np.random.default_rng(seeds), seeds, 50, 1.0, 3.0, 0.0)
    expected = scores_SRC.mean(axis=(1, 2)).var(ddof=1) / seeds + scores_SRC.mean(axis=(0, 2)).var() / 50
    spread = resample_means(scores_SRC, resamples=40_000).draws_BC.var()
    assert spread == pytest.approx(expected, rel=0.05)


def test_noise_of_single_scores_counts_three_times_and_is_never_underestimated():
    rng = np.random.default_rng(0)
    spreads = [
        resample_means(crossed(rng, 3, 50, 0.0, 0.0, 1.0), resamples=1000, seed=run).draws_BC.var()
        for run in range(200)
    ]
    assert np.mean(spreads) * 3 * 50 == pytest.approx(3, rel=0.1)


def test_intervals_over_seeds_cover_where_those_over_records_alone_do_not():
    rng = np.random.default_rng(0)
    hits = {"crossed": 0, "records": 0}
    for _ in range(200):
        scores_SRC = crossed(rng, 8, 60, 0.3, 1.0, 0.5)
        alone_SRC = scores_SRC.mean(axis=0, keepdims=True)
        for name, scores in (("crossed", scores_SRC), ("records", alone_SRC)):
            found = estimate(scores, np.ones(1), resamples=1000)
            hits[name] += found.low <= 0 <= found.high
    assert 0.90 <= hits["crossed"] / 200 <= 0.99
    assert hits["records"] / 200 < 0.88


def test_seeds_that_all_agree_change_nothing():
    scores_SRC = cube(1, 40, 3, 1)
    once, thrice = (estimate(np.repeat(scores_SRC, n, axis=0), np.full(3, 1 / 3)) for n in (1, 3))
    assert (once.value, once.low, once.high) == pytest.approx((thrice.value, thrice.low, thrice.high))


def test_a_seed_that_one_column_lacks_counts_in_the_others():
    """A cell that failed on one model takes nothing from the other models."""
    scores_SRC = cube(3, 40, 2, 1, missing=0.0)
    scores_SRC[2, :, 1] = np.nan
    found = estimate(scores_SRC, np.full(2, 1 / 2))
    assert found.value == pytest.approx((scores_SRC[:, :, 0].mean() + scores_SRC[:2, :, 1].mean()) / 2)
    assert found.low < found.value < found.high


def test_a_paired_difference_is_narrower_than_an_unpaired_one():
    rng = np.random.default_rng(0)
    left_RC = rng.binomial(4, 0.6, size=(1, 100, 3)) / 4
    right_RC = np.clip(left_RC - rng.binomial(1, 0.3, size=left_RC.shape) / 4, 0, 1)
    weights_C = np.full(3, 1 / 3)
    paired = difference(left_RC, right_RC, weights_C)
    left, right = estimate(left_RC, weights_C), estimate(right_RC, weights_C)
    assert paired.value == pytest.approx(left.value - right.value)
    assert paired.half_width < 0.6 * np.hypot(left.half_width, right.half_width)
    assert paired.low > 0


def test_in_a_difference_records_are_paired_and_seeds_are_not():
    """Two methods that respond alike to records, each with effects of its own seeds."""
    rng = np.random.default_rng(1)
    of_record_1R1 = rng.normal(0, 3.0, (1, 50, 1))
    left_SRC, right_SRC = (of_record_1R1 + rng.normal(0, 1.0, (seeds, 1, 1)) for seeds in (6, 9))
    found = difference(left_SRC, right_SRC, np.ones(1), resamples=40_000)
    variance = sum(one.mean(axis=(1, 2)).var(ddof=1) / len(one) for one in (left_SRC, right_SRC))
    assert found.half_width == pytest.approx(1.96 * np.sqrt(variance), rel=0.1)


def test_a_method_compared_with_itself_differs_by_nothing():
    scores_SRC = cube(1, 40, 3, 1)
    same = difference(scores_SRC, scores_SRC, np.full(3, 1 / 3))
    assert (same.value, same.low, same.high) == pytest.approx((0, 0, 0))


def test_records_that_all_agree_give_an_interval_without_width():
    found = estimate(np.ones((1, 50, 1)), np.ones(1))
    assert (found.value, found.low, found.high) == (1, 1, 1)


@pytest.mark.parametrize("scores_SRC", [np.full((2, 50, 1), np.nan), np.empty((1, 0, 1))])
def test_an_empty_column_has_neither_mean_nor_interval(scores_SRC):
    found = estimate(scores_SRC, np.ones(1))
    assert np.isnan([found.value, found.low, found.high]).all()


def test_a_single_record_has_a_mean_and_an_interval_without_width():
    found = estimate(np.full((1, 1, 1), 0.5), np.ones(1))
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)


def test_a_column_of_weight_zero_may_be_empty():
    scores_SRC = cube(1, 30, 2, 0, missing=0.0)
    scores_SRC[:, :, 1] = np.nan
    assert estimate(scores_SRC, np.array([1.0, 0.0])).value == pytest.approx(scores_SRC[:, :, 0].mean())


def test_the_percentile_interval_stands_in_where_the_correction_is_undefined():
    draws_B = np.linspace(0, 1, 101)
    assert bca_interval(2.0, draws_B, [np.array([0.1, 0.2])]) == pytest.approx((0.025, 0.975))


def test_the_same_seed_gives_the_same_bits():
    scores_SRC = cube(3, 30, 3, 2)
    assert estimate(scores_SRC, np.ones(3), seed=4) == estimate(scores_SRC.copy(), np.ones(3), seed=4)
    assert estimate(scores_SRC, np.ones(3), seed=4) != estimate(scores_SRC, np.ones(3), seed=5)


def test_records_of_one_cluster_count_as_one():
    """Ten copies of each record say nothing more, and the interval is as wide as without them."""
    scores_SRC = cube(1, 30, 2, 4, missing=0.0)
    copies, clusters = np.repeat(scores_SRC, 10, axis=1), np.repeat(np.arange(30), 10)
    once = resample_means(scores_SRC).estimate(np.full(2, 1 / 2))
    clustered = resample_means(copies, clusters).estimate(np.full(2, 1 / 2))
    assert (clustered.value, clustered.low, clustered.high) == pytest.approx((once.value, once.low, once.high))
    assert resample_means(copies).estimate(np.full(2, 1 / 2)).half_width < 0.5 * once.half_width


def test_the_shares_of_clusters_add_up_to_the_means():
    scores_SRC, clusters = cube(3, 12, 2, 5), np.arange(12) // 3
    scores_SRC[1, :, 0] = np.nan
    np.testing.assert_allclose(shares(scores_SRC, clusters).sum(axis=0), resample_means(scores_SRC).value_C)


def test_a_choice_is_made_anew_in_every_resample():
    first, second = (resample_means(cube(1, 40, 2, seed, missing=0.0), resamples=500) for seed in (1, 2))
    weights_C = np.full(2, 1 / 2)
    chosen = choose([first, second], weights_C)
    np.testing.assert_allclose(
        chosen.draws_BC @ weights_C, np.maximum(first.draws_BC @ weights_C, second.draws_BC @ weights_C)
    )
    assert chosen.value_C @ weights_C == max(first.value_C @ weights_C, second.value_C @ weights_C)
    lacking = resample_means(np.full((1, 40, 2), np.nan), resamples=500)
    np.testing.assert_array_equal(choose([lacking, first], weights_C).value_C, first.value_C)


def test_the_p_value_of_equal_methods_is_large_and_of_different_ones_small():
    scores_SRC = cube(2, 60, 1, 3, missing=0.0)
    same = resample_means(scores_SRC)
    worse = resample_means(scores_SRC - 0.3, method=1)
    assert same.p_value(same, np.ones(1)) == 1.0
    assert same.p_value(worse, np.ones(1)) < 0.01
