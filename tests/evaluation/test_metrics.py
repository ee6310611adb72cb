import math
from dataclasses import replace

import pytest

from harness.evaluation.metrics import aggregate, agreement, row
from harness.evaluation.probes import ProbeQuery
from harness.records import Answer, Probe
from harness.tokens import Query


def question(axis, target_ids=(1, 2, 3, 4)):
    return ProbeQuery("r", axis, 0, Query("p", "t", (9,), target_ids))


def scored(record_id, score, axis="generality", exact=0.0, answer=math.nan):
    return Answer(record_id, "generation", axis, 0, "p", "t", "x", 4, score, exact, answer, math.nan)


def test_reliability_is_the_fraction_of_matching_target_ids():
    made = row(question("reliability"), "generation", [1, 2, 4, 3], "text", None, math.nan)
    assert (made.score, made.exact, made.n_tokens, made.predicted) == (0.5, 0.0, 4, "text")
    assert math.isnan(made.answer_score)


def test_an_answer_is_exact_only_if_every_id_is_right():
    assert row(question("portability"), "generation", [1, 2, 3, 4], "", None, math.nan).exact == 1.0
    assert row(question("portability"), "generation", [1, 2, 3, 5], "", None, math.nan).exact == 0.0


def test_locality_compares_with_the_unedited_model_and_not_with_the_datasets_answer():
    made = row(question("locality"), "teacher_forced", [1, 7, 7, 7], "", [7, 7, 7, 7], math.nan)
    assert (made.score, made.exact, made.answer_score) == (0.75, 0.0, 0.25)


def test_a_locality_question_without_an_answer_has_no_answer_score():
    asked = replace(question("locality"), asked=Probe("p", "t", has_answer=False))
    made = row(asked, "generation", [1, 2, 3, 4], "", [1, 2, 3, 4], math.nan)
    assert (made.score, math.isnan(made.answer_score)) == (1.0, True)
    both = [scored("a", 1.0, "locality", answer=0.5), scored("a", 1.0, "locality"), scored("b", 1.0, "locality")]
    assert aggregate(both)["generation"]["locality"]["answer_score"] == 0.5
    assert "answer_score" not in aggregate(both[1:])["generation"]["locality"]


def test_the_unedited_answer_is_required_for_locality_and_refused_elsewhere():
    with pytest.raises(ValueError, match="locality"):
        row(question("locality"), "generation", [1, 2, 3, 4], "", None, math.nan)
    with pytest.raises(ValueError, match="reliability"):
        row(question("reliability"), "generation", [1, 2, 3, 4], "", [1, 2, 3, 4], math.nan)


@pytest.mark.parametrize(("predicted", "expected"), [([1], [1, 2]), ([1, 2, 3], [1, 2]), ([], [])])
def test_answers_of_another_length_are_refused(predicted, expected):
    with pytest.raises(ValueError, match="predicted ids"):
        agreement(predicted, expected)


def test_a_record_with_many_probes_weighs_as_much_as_one_with_few():
    rows = [scored("a", 1.0, exact=1.0), scored("b", 0.0), scored("b", 0.5), scored("b", 0.25)]
    assert aggregate(rows) == {"generation": {"generality": {"score": 0.625, "exact": 0.5, "n": 2}}}


def test_locality_has_an_answer_score_and_the_other_axes_have_none():
    metrics = aggregate([scored("a", 1.0, "locality", 1.0, answer=0.5), scored("a", 1.0, "reliability", 1.0)])
    assert metrics["generation"]["locality"] == {"score": 1.0, "exact": 1.0, "answer_score": 0.5, "n": 1}
    assert "answer_score" not in metrics["generation"]["reliability"]


def test_an_axis_without_probes_is_absent():
    assert set(aggregate([scored("a", 1.0)])["generation"]) == {"generality"}
    assert aggregate([]) == {}


def test_a_row_contains_the_routing_score_of_its_question():
    assert row(question("portability"), "generation", [1, 2, 3, 4], "", None, 0.25).scope == 0.25
