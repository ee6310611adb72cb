"""`traced` in place of layers: what is understood, what it becomes, and what is refused."""

import pytest

from harness.errors import UserError
from harness.suite import hparams
from methods.common.layers import TracedLayer, TracedLayers
from tests.tracing.facts import trace

OPTIONS = {"rome": "layers", "memit": "layers", "ft-l": "layer", "grace": "layer", "wise": "layer", "defer": "layer"}


@pytest.fixture
def folder(tmp_path):
    trace(decisive=3).save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("method", OPTIONS)
def test_each_method_with_layers_leaves_them_to_a_trace_and_keeps_all_else(method, folder):
    from harness import registry

    key = OPTIONS[method]
    values = hparams.resolve(method, "smollm2-135m", {key: "traced", **moments(method)}).values
    made = registry.find_method(method).Hparams.model_validate(values)
    assert made.model_dump(mode="json") == values
    decided, chosen = made.decided({key: folder})
    expected = {"layer": 3, "layers": [3]}[key] if method != "memit" else [0, 1, 2, 3]
    assert chosen == {key: expected}
    assert decided.choices() == {}
    assert decided.model_dump(mode="json") == {**values, key: expected}


def moments(method):
    return {"moments": "train_prompts"} if method in ("rome", "memit") else {}


def test_options_of_the_trace_and_the_number_of_layers_can_be_written(folder):
    assert TracedLayer.read("traced") == TracedLayer()
    found = TracedLayers.read({"traced": {"count": 3, "facts": 20, "samples": 2}})
    assert (found.count, found.facts, found.samples) == (3, 20, 2)
    assert found.value(folder) == [1, 2, 3]
    assert TracedLayers.read(found.written()) == found
    for value in (3, [3], "trace", {"depth": 0.5}, {"traced": {}, "depth": 1}):
        assert not TracedLayers.is_written(value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("tracd", "found text 'tracd'"),
        ({"traced": {"fact": 3}}, "traced.fact"),
        ({"traced": {"facts": 0}}, "traced.facts"),
        ([2, 1], "layers must ascend"),
    ],
)
def test_what_is_no_choice_and_no_layer_is_one_line(value, says):
    with pytest.raises(UserError, match="layers: ") as caught:
        hparams.resolve("rome", "smollm2-135m", {"layers": value})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_method_without_causal_tracing_refuses_the_word():
    with pytest.raises(UserError, match=r"layers: .* found text 'traced'"):
        hparams.resolve("mend", "smollm2-135m", {"layers": "traced"})
