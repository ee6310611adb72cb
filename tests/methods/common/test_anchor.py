"""Reference norms of values: those of a loop over facts on the unedited model, and what decides whether there are any."""

import dataclasses

import pytest

from harness import registry
from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.models.weights import weight_hash
from harness.records import DataRef
from methods.common import anchor
from methods.common.aligned import enter
from methods.common.closed_form import ValueHparams
from methods.common.rewrites import rewrite
from methods.common.values import optimise
from methods.memit import Memit
from methods.rome import Rome
from tests.helpers.method_bench import OPTIONS, Bench
from tests.helpers.tiny_rome import MOMENTS, PREFIXES, VALUE, easy_requests, requests, watch

TARGET = ModelRef("gpt-j-6b", "pretrained", sha256="x")
DATA = DataRef("counterfact", "", 4, train=8, sha256="y")


def rome(**changes):
    return Rome(Rome.Hparams(**VALUE | MOMENTS | {"key_mode": "rome", "norm_anchor": 3} | changes))


def memit(**changes):
    more = {"layers": [3, 4], "moment_weight": 2.0, "batch": 100, "micro_batch": 3, "norm_anchor": 3}
    return Memit(Memit.Hparams(**VALUE | MOMENTS | more | changes))


def spec_of(method, target=TARGET, data=DATA):
    return method.artifacts(target, data, 0)["anchor"]


@pytest.mark.parametrize(("scale", "place"), [("value", 1), ("stream", 2)])
def test_norms_are_those_of_a_loop_over_facts_each_in_every_layer_by_itself(model, scale, place):
    values = ValueHparams(**VALUE | {"layers": [0, 1]})
    facts = [rewrite(model, fact, PREFIXES, "joint") for fact in [*requests(), *easy_requests(model)]]
    bits, found = weight_hash(model.model), anchor.value_norms(model, facts, values, scale)
    assert weight_hash(model.model) == bits
    assert list(found) == [0, 1]
    for layer, norms in found.items():
        for made, norm in zip(facts, norms, strict=True):
            seen = watch(model, layer, made.contexts[0].ids, made.contexts[0].pivot)
            stream = enter(model, made.rows, layer + 1)
            delta_D = optimise(model, [made], stream, layer + 1, seen[place].norm()[None], values).delta_ND[0]
            assert norm == pytest.approx((seen[1] + delta_D).norm().item(), rel=1e-4)


def test_the_longest_twentieth_does_not_count():
    assert anchor.typical([float(n) for n in range(1, 41)]) == sum(range(1, 39)) / 38
    assert anchor.typical([3.0, 5.0]) == 4.0


def test_the_key_depends_on_the_optimisation_the_facts_and_the_layers_and_on_nothing_that_comes_after():
    keys = {
        spec_of(method).key
        for method in (rome(), rome(v_lr=0.3), rome(norm_anchor=4), rome(layers=[1]), rome(prefixes=[[5, 1]]), memit())
    }
    assert len(keys) == 6
    assert spec_of(memit()).key == spec_of(memit(moment_weight=3.0, norm_weight=1.0, keep_largest=0.4)).key
    assert set(spec_of(rome(layers="traced")).needs) == {"prefixes", "layers"}
    assert "anchor" not in rome(norm_anchor=None).artifacts(TARGET, DATA, 0)


def test_planning_refuses_an_anchor_without_train_records_or_where_the_model_normalises_values():
    with pytest.raises(UserError, match=r"'counterfact' keeps none for training → .*, or norm_anchor: null"):
        spec_of(rome(moments="identity"), data=dataclasses.replace(DATA, train=0))
    with pytest.raises(UserError, match=r"gemma-3-270m normalises them .* → norm_anchor: null"):
        spec_of(rome(), target=ModelRef("gemma-3-270m", "pretrained", sha256="x"))


@pytest.mark.parametrize("method", ["rome", "memit", "alphaedit"])
def test_a_method_with_both_switches_edits_and_gives_the_model_back(method, small_checkpoints, artifact_store):
    bench = Bench(small_checkpoints, artifact_store, method, "llama", norm_anchor=5, v_probable_stop=2)
    bits, layers = weight_hash(bench.model.model), OPTIONS[method]["layers"]
    norms = anchor.load(bench.artifacts["anchor"])
    assert list(norms) == layers[-1:]
    assert all(norm > 0 for norm in norms.values())
    edited = bench.edit()
    with_anchor = weight_hash(bench.model.model)
    assert with_anchor != bits
    edited.revert()
    assert weight_hash(bench.model.model) == bits
    plain = Bench(small_checkpoints, artifact_store, method, "llama")
    plain.edit()
    assert weight_hash(plain.model.model) != with_anchor


@pytest.mark.parametrize("method", ["rome", "memit", "alphaedit"])
def test_every_method_that_inserts_values_has_both_variants(method):
    from harness.suite import hparams

    cls = registry.find_method(method).Hparams
    for model in ("llama2-7b", "llama3-8b", "tiny/llama", "smollm2-135m", "qwen2.5-1.5b"):
        nas, encore = (
            cls.model_validate(hparams.resolve(method, model, {}, variant=name).values) for name in ("nas", "encore")
        )
        assert nas.norm_anchor == 100
        assert encore.v_probable_stop == (2 if model == "llama3-8b" else 3)
        assert encore.norm_weight > 0
