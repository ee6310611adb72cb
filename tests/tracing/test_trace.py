"""Traces on disk, roles of tokens, averages with intervals, and the layer that decides."""

import json

import numpy as np
import pytest

from harness.models.catalogue import ModelRef
from harness.records import DataRef
from harness.tracing.artifact import PART_FACTS, TraceOptions, artifact, layers_in
from harness.tracing.trace import KINDS, Trace, roles_of
from tests.tracing.facts import fact, trace


def test_every_token_from_the_subject_on_has_one_role():
    assert roles_of(4, 3) == [
        "first subject",
        *["middle subject"] * 2,
        "last subject",
        "first after",
        "further",
        "last",
    ]
    assert roles_of(2, 2) == ["first subject", "last subject", "first after", "last"]
    assert roles_of(1, 1) == ["last subject", "last"]


def test_a_trace_is_read_back_as_it_was_written(tmp_path):
    made = trace()
    made.save(tmp_path)
    found = Trace.load(tmp_path)
    assert (found.asked, found.windows, found.noise, found.n_layers) == (10, made.windows, 0.3, 6)
    for one, other in zip(found.facts, made.facts, strict=True):
        assert (one.record_id, one.tokens, one.roles, one.clean) == (other.record_id, other.tokens, other.roles, 0.7)
        assert all(np.array_equal(one.effects[kind], other.effects[kind]) for kind in KINDS)


def test_parts_without_a_fact_add_nothing(tmp_path):
    empty = Trace((), 10, {"state": 1, "mlp": 2, "attention": 2}, 0.3)
    empty.save(tmp_path)
    assert Trace.load(tmp_path).facts == ()
    joined = Trace.joined(iter([Trace((fact(0),), 10, empty.windows, 0.3), empty]))
    assert [each.record_id for each in joined.facts] == ["r0"]


def test_averages_are_means_over_facts_with_normal_intervals(tmp_path):
    found = trace(4).indirect_effect("mlp", "last subject")
    values = 0.5 + 0.01 * np.arange(4)
    assert found.value[3] == pytest.approx(values.mean())
    assert found.half_width[3] == pytest.approx(1.96 * values.std(ddof=1) / 2)
    assert trace(4).total_effect().value == pytest.approx(0.6 - 0.015)
    trace(1).save(tmp_path)
    assert json.loads((tmp_path / "trace.json").read_text())["total_effect"] == {
        "value": pytest.approx(0.6), "half_width": None, "facts": 1,
    }  # fmt: skip


def test_a_role_that_no_fact_has_has_no_average_and_one_that_some_have_is_averaged_over_those():
    short = Trace((fact(subject=1, after=1), fact(1)), 2, {"state": 1, "mlp": 1, "attention": 1}, 0.3)
    assert short.indirect_effect("state", "middle subject").facts == 1
    assert short.indirect_effect("state", "last").facts == 2
    alone = Trace(short.facts[:1], 1, short.windows, 0.3)
    assert alone.indirect_effect("state", "middle subject") is None


def test_the_layer_with_the_largest_mlp_effect_at_the_last_subject_token_decides():
    assert trace(decisive=3).decisive_layer() == 3
    assert trace(decisive=5).decisive_layer() == 5


def test_windows_are_a_share_of_the_depth_and_one_layer_at_least():
    assert [layers_in(10 / 48, depth) for depth in (48, 30, 4)] == [10, 6, 1]
    assert layers_in(0, 48) == 1


def test_a_trace_is_built_in_parts_and_each_option_makes_another_one():
    model, data = (
        ModelRef("smollm2-135m", "pretrained", sha256="x"),
        DataRef("counterfact", "", 5, train=50, sha256="y"),
    )
    made = artifact(model, data, TraceOptions(facts=12), 0)
    spans = [(part.identity["start"], part.identity["stop"]) for part in made.needs.values()]
    assert spans == [(0, PART_FACTS), (PART_FACTS, 2 * PART_FACTS), (2 * PART_FACTS, 12)]
    assert len({part.needs["known"].key for part in made.needs.values()}) == 1
    options = ({}, {"samples": 3}, {"noise": 2.0}, {"mlp_window": 0.5}, {"attention_window": 0.5}, {"facts": 13})
    keys = [artifact(model, data, TraceOptions(**{"facts": 12, **each}), 0).key for each in options]
    keys.append(artifact(model, data, TraceOptions(facts=12), 1).key)
    assert len(set(keys)) == len(keys)
    assert keys[0] == made.key
