"""The highest reachable scores, against a slow twin that tries every model."""

import itertools
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.evaluation.attainable import maxima
from harness.evaluation.probes import ProbeQuery
from harness.evaluation.protocols import Generation, TeacherForced
from harness.tokens import Query
from methods.easyedit.scoring import FORMS

PROTOCOLS = [TeacherForced(), Generation()]
IDS = st.integers(1, 2)


def question(axis, prompt, target, record="a", probe=0):
    return ProbeQuery(record, axis, probe, Query("", "", tuple(prompt), tuple(target)))


@st.composite
def questions(draw):
    """A few questions on two prompts with short targets, and the ids that are wanted."""
    asked = []
    for axis, most in (("reliability", 2), ("generality", 2), ("locality", 2)):
        for number in range(draw(st.integers(0, most))):
            target = draw(st.lists(IDS, min_size=1, max_size=2))
            record = draw(st.sampled_from("ab")) if axis != "reliability" else str(number)
            asked.append(question(axis, [draw(st.integers(7, 8))], target, record, number))
    wanted = [
        draw(st.lists(IDS, min_size=len(one.query.target_ids), max_size=len(one.query.target_ids)))
        if one.axis == "locality"
        else one.query.target_ids
        for one in asked
    ]
    return asked, wanted


def score(axis, asked, wanted, protocol, model):
    by_record = defaultdict(list)
    for one, ids in zip(asked, wanted, strict=True):
        if one.axis == axis:
            right = [model[protocol.context(one.query, place)] == token for place, token in enumerate(ids)]
            by_record[one.record_id].append(sum(right) / len(ids))
    means = [sum(scores) / len(scores) for scores in by_record.values()]
    return sum(means) / len(means)


def slow_maxima(asked, wanted, protocol):
    contexts = list(
        {protocol.context(one.query, place): None for one in asked for place in range(len(one.query.target_ids))}
    )
    models = [dict(zip(contexts, ids, strict=True)) for ids in itertools.product((1, 2), repeat=len(contexts))]
    axes = {one.axis for one in asked}
    if "reliability" in axes:
        reached = [score("reliability", asked, wanted, protocol, model) for model in models]
        models = [model for model, value in zip(models, reached, strict=True) if value > max(reached) - 1e-9]
    return {axis: max(score(axis, asked, wanted, protocol, model) for model in models) for axis in axes}


@settings(max_examples=60, deadline=None)
@given(questions(), st.sampled_from(PROTOCOLS))
def test_the_maxima_are_the_best_of_all_models_that_make_the_edits(drawn, protocol):
    assert maxima(*drawn, protocol) == pytest.approx(slow_maxima(*drawn, protocol))


@pytest.mark.parametrize(
    ("rephrase", "teacher_forced", "generation"),
    [
        ((5, 6), 1.0, 1.0),
        ((5, 9), 0.5, 0.5),
        ((9, 6), 0.5, 0.5),  # with the first id forced the second is another context; generated, it is the edit's own
        ((9, 9), 0.5, 0.0),
        ((5,), 1.0, 1.0),
        ((5, 6, 9), 1.0, 1.0),
    ],
)
def test_a_rephrase_that_is_another_edits_prompt_can_only_be_right_where_the_edit_is(
    rephrase, teacher_forced, generation
):
    asked = [question("reliability", [7], [5, 6]), question("generality", [7], rephrase, "b")]
    wanted = [one.query.target_ids for one in asked]

    found = [maxima(asked, wanted, protocol)["generality"] for protocol in PROTOCOLS]

    assert found == [teacher_forced, generation]
    assert maxima(asked, wanted, PROTOCOLS[0])["reliability"] == 1.0


def test_locality_of_an_edited_prompt_is_only_reachable_where_the_unedited_model_says_the_target():
    asked = [question("reliability", [7], [5, 6]), question("locality", [7], [3, 4], "b")]

    assert maxima(asked, [(5, 6), (5, 8)], Generation())["locality"] == 0.5
    assert maxima(asked, [(5, 6), (5, 8)], TeacherForced())["locality"] == 1.0
    assert maxima(asked, [(5, 6), (8, 8)], TeacherForced())["locality"] == 0.5


def test_nothing_is_said_of_a_protocol_whose_contexts_are_unknown():
    asked = [question("reliability", [7], [5]), question("generality", [7], [6], "b")]

    assert maxima(asked, [(5,), (6,)], FORMS["generation"]) == {"reliability": 1.0, "generality": 1.0}
    assert maxima(asked, [(5,), (6,)], FORMS["teacher_forced"])["generality"] == 0.0
