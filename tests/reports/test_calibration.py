"""Calibration against the summary in metrics.json, and each resample against questions that are copied out."""

import numpy as np
import pandas as pd
from scipy.special import ndtr

from harness.evaluation.scope import summary
from reports.calibration import MEASURES, Measure, all_measures, estimate_calibration

LEVELS = 6
"""Few, so that ties are common."""


def questions(seed, records=9, unrelated=4):
    """Edited records with one edit and none to three questions on other axes, and unrelated records with one each."""
    rng = np.random.default_rng(seed)
    places = [("reliability", f"r{record}") for record in range(records)]
    for axis in ("generality", "locality"):
        places += [(axis, f"r{record}") for record in range(records) for _ in range(rng.integers(0, 4))]
    places += [("locality_unrelated", f"u{record}") for record in range(unrelated)]
    scopes = rng.integers(0, LEVELS + 1, len(places)) / LEVELS
    return pd.DataFrame(places, columns=["axis", "cluster"]).assign(scope=scopes)


def slow(scopes):
    """All measures from the summary in `metrics.json`, which has tests of its own against loops."""
    of_axes = summary({axis: same["scope"].tolist() for axis, same in scopes.groupby("axis")})
    return [
        of_axes.get(axis, {}).get("auroc", {}).get(against, np.nan)
        if quantity == "auroc"
        else of_axes.get(axis, {}).get(quantity, np.nan)
        for quantity, axis, against in MEASURES
    ]


def test_measures_are_those_of_the_cells_averaged_over_seeds():
    by_seed = [questions(seed) for seed in range(3)]
    found = estimate_calibration(by_seed)
    values = [found.estimates[measure].value for measure in MEASURES]
    np.testing.assert_allclose(values, np.mean([slow(scopes) for scopes in by_seed], axis=0), atol=1e-12)
    assert np.isnan(found.estimates[Measure("mean", "portability")].value)


def test_a_resample_equals_records_repeated_with_all_their_questions():
    scopes, rng = questions(5), np.random.default_rng(0)
    order = sorted(set(scopes["cluster"]))
    counts_BR = rng.integers(0, 3, (20, len(order))).astype(float)
    counts_BR[0] = 1
    values_BC = all_measures(scopes, order)(counts_BR)
    for counts_R, values_C in zip(counts_BR, values_BC, strict=True):
        copies = [scopes[scopes["cluster"] == r] for r, n in zip(order, counts_R, strict=True) for _ in range(int(n))]
        np.testing.assert_allclose(values_C, slow(pd.concat(copies)), atol=1e-12)
    assert np.isnan(all_measures(scopes, order)(np.zeros((1, len(order))))).all()


def test_intervals_contain_the_estimate_and_narrow_with_the_number_of_records():
    widths = []
    for records in (20, 320):
        found = estimate_calibration([questions(1, records, records)]).estimates
        shown = [one for one in found.values() if not np.isnan(one.value)]
        assert all(one.low < one.value < one.high for one in shown)
        widths.append(found[Measure("auroc", "generality", "both")].half_width)
    assert widths[1] < widths[0] / 2


def test_the_interval_of_an_auroc_covers_the_truth_about_as_often_as_it_says():
    """Each record has one scope for all its questions, as a bootstrap over questions would not know."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(100):
        inside, outside = rng.normal(1, 1, 40), rng.normal(0, 1, 40)
        rows = [("generality", f"r{record}", value) for record, value in enumerate(inside) for _ in range(3)]
        rows += [("locality_unrelated", f"u{record}", value) for record, value in enumerate(outside)]
        squashed = pd.DataFrame(rows, columns=["axis", "cluster", "scope"]).assign(scope=lambda f: ndtr(f["scope"]))
        found = estimate_calibration([squashed], resamples=1000).estimates[
            Measure("auroc", "generality", "locality_unrelated")
        ]
        hits += found.low <= ndtr(1 / np.sqrt(2)) <= found.high
    assert 0.88 <= hits / 100 <= 0.99


def test_histograms_are_shares_and_average_over_seeds():
    by_seed = [
        pd.DataFrame([("reliability", "r0", a), ("reliability", "r1", b)], columns=["axis", "cluster", "scope"])
        for a, b in ((0.05, 0.95), (0.94, 1.0))
    ]
    found = estimate_calibration(by_seed)
    assert found.histograms["reliability"].tolist() == [0.25, 0, 0, 0, 0, 0, 0, 0, 0, 0.75]
    assert np.isnan(found.histograms["generality"]).all()
    assert (found.questions["reliability"], found.questions["generality"]) == (2, 0)
