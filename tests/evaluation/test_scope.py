import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.evaluation.scope import auroc, scope_metrics, summary
from harness.records import Answer

levels = st.lists(st.integers(0, 6).map(lambda level: level / 6), min_size=1, max_size=12)


def answered(axis, scope, record="r", probe=0, protocol="generation"):
    return Answer(record, protocol, axis, probe, "p", "t", "x", 4, 1.0, 1.0, math.nan, scope)


def slow_auroc(inside, outside):
    won = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a in inside for b in outside)
    return won / (len(inside) * len(outside))


@settings(deadline=None)  # the first call imports scipy.stats
@given(levels, levels)
def test_auroc_equals_a_loop_over_all_pairs_with_ties_counted_half(inside, outside):
    assert auroc(inside, outside) == pytest.approx(slow_auroc(inside, outside), abs=1e-12)


def test_auroc_of_many_continuous_values_equals_the_loop():
    rng = np.random.default_rng(0)
    inside, outside = rng.beta(5, 2, 300), rng.beta(2, 5, 700)
    assert auroc(inside, outside) == pytest.approx(slow_auroc(inside, outside), abs=1e-12)


def test_the_auroc_of_identical_values_is_one_half():
    assert auroc([0.5] * 7, [0.5] * 3) == 0.5


def test_auroc_against_an_empty_side_is_refused():
    with pytest.raises(ValueError, match="3 against 0"):
        auroc([1, 1, 1], [])


def test_shares_are_strictly_beyond_their_thresholds_and_histograms_count_every_question():
    found = summary(
        {
            "reliability": [0.7, 0.71, 1.0, 0.05],
            "generality": [0.9],
            "locality": [0.3, 0.29, 0.0],
            "locality_unrelated": [0.99],
            "portability": [0.42],
        }
    )
    assert found["reliability"]["share_above_0.7"] == 0.5
    assert found["locality"]["share_below_0.3"] == pytest.approx(2 / 3)
    assert found["locality_unrelated"]["share_below_0.3"] == 0.0
    assert found["portability"] == {"questions": 1, "mean": 0.42, "histogram": [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]}
    assert [sum(found[axis]["histogram"]) for axis in found] == [4, 1, 3, 1, 1]
    assert (found["reliability"]["histogram"][0], found["reliability"]["histogram"][-1]) == (1, 1)
    assert found["reliability"]["mean"] == pytest.approx(0.615)


def test_edits_and_rephrases_are_compared_with_each_kind_of_locality_and_with_both():
    scopes = {
        "reliability": [0.9, 0.4],
        "generality": [0.2, 0.95, 0.5],
        "locality": [0.5, 0.1],
        "locality_unrelated": [0.0, 0.4, 0.2],
    }
    found = summary(scopes)
    for axis in ("reliability", "generality"):
        assert found[axis]["auroc"] == pytest.approx(
            {
                "locality": slow_auroc(scopes[axis], scopes["locality"]),
                "locality_unrelated": slow_auroc(scopes[axis], scopes["locality_unrelated"]),
                "both": slow_auroc(scopes[axis], [*scopes["locality"], *scopes["locality_unrelated"]]),
            }
        )


def test_axes_without_questions_are_absent():
    found = summary({"reliability": [0.9], "generality": [], "locality": [], "locality_unrelated": [0.1]})
    assert set(found) == {"reliability", "locality_unrelated"}
    assert found["reliability"]["auroc"] == {"locality_unrelated": 1.0, "both": 1.0}
    assert summary({"reliability": [0.9]})["reliability"]["auroc"] == {}
    json.dumps(found, allow_nan=False)


def test_a_method_without_routing_scores_has_no_summary():
    assert scope_metrics([answered("reliability", math.nan), answered("locality", math.nan)]) == {}
    assert scope_metrics([]) == {}


def test_routing_scores_for_only_some_questions_are_an_error():
    with pytest.raises(ValueError, match="only some questions"):
        scope_metrics([answered("reliability", math.nan), answered("locality", 0.5)])


def test_a_question_counts_once_regardless_of_the_number_of_protocols():
    rows = [
        answered("reliability", scope, record, probe, protocol)
        for protocol in ("teacher_forced", "generation")
        for record, probe, scope in (("a", 0, 0.9), ("a", 1, 0.1), ("b", 0, 0.8))
    ]
    found = scope_metrics(rows)["reliability"]
    assert (found["questions"], found["mean"]) == (3, pytest.approx(0.6))
