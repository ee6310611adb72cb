"""Ranges of hyper-parameters, and what is drawn from them."""

import optuna
import pytest

from harness import registry
from harness.errors import UserError
from harness.suite.hparams import resolve, search_file
from harness.tune.space import read_space

VALUES = {"lr": 1e-3, "layer": 2, "layers": [1, 2], "steps": 10, "clamp": None, "sign": -0.1, "share": 0.5}


@pytest.fixture
def space(tmp_path):
    def _space(text, n_layers=10):
        file = tmp_path / "search.yaml"
        file.write_text(text)
        return read_space(file, VALUES, n_layers)

    return _space


def drawn(space, times=40):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.suggest(study.ask()) for _ in range(times)]


def test_values_are_within_their_ranges(space):
    ranges = space(
        "lr: {log: [1.0e-5, 1.0e-1]}\nsteps: {integer: [3, 9]}\nshare: {uniform: [0.2, 0.4]}\n"
        "clamp: {choice: [null, 2, [1, 2]]}\nsign: {log: [-1.0, -0.01]}\n"
    )
    values = drawn(ranges)
    assert all(1e-5 <= each["lr"] <= 1e-1 for each in values)
    assert min(each["lr"] for each in values) < 1e-4 < 1e-2 < max(each["lr"] for each in values)
    assert {each["steps"] for each in values} == set(range(3, 10))
    assert all(0.2 <= each["share"] <= 0.4 for each in values)
    assert [None in (each["clamp"] for each in values), [1, 2] in (each["clamp"] for each in values)] == [True, True]
    assert all(-1 <= each["sign"] <= -0.01 for each in values)


def test_layers_are_shares_of_the_depth_and_as_many_as_the_value_in_use_has(space):
    values = drawn(space("layer: {depth: [0.5, 1.0]}\nlayers: {depth: [0.0, 1.0]}\n"))
    assert {each["layer"] for each in values} == set(range(4, 10)), "round(.5 × 9) is 4"
    assert {tuple(each["layers"]) for each in values} == {(first, first + 1) for first in range(9)}
    assert {tuple(each["layers"]) for each in drawn(space("layers: {depth: [0.0, 0.0001], count: 3}"))} == {(0, 1, 2)}


def test_what_was_drawn_can_be_expressed_as_parameters_again(space):
    ranges = space(
        "lr: {log: [1.0e-5, 1.0e-1]}\nlayers: {depth: [0.0, 1.0]}\nsign: {log: [-1.0, -0.01]}\nclamp: {choice: [null, 2]}"
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(10):
        values = ranges.suggest(study.ask())
        study.enqueue_trial(ranges.parameters(values))
        assert ranges.suggest(study.ask()) == values
    assert ranges.parameters({**VALUES, "clamp": 2.0}) == ranges.parameters({**VALUES, "clamp": 2}), (
        "a number as YAML has it"
    )
    assert ranges.parameters({**VALUES, "lr": 1.0}) is None
    assert ranges.parameters({**VALUES, "layers": [1, 3]}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layrs: {log: [1, 2]}", "search.yaml:1: unknown hyper-parameter 'layrs' (did you mean 'layers'"),
        ("lr: {log: [0, 2]}", "must have the same sign"),
        ("lr: {log: [2, 1]}", "expected the lower bound first"),
        ("lr: {log: [1, 2], choice: [1, 2]}", "exactly one of log, uniform, integer, choice and depth"),
        ("layers: {depth: [0, 1], count: 11}", "layers: 11 layers, but the model has only 10"),
        ("layer: {depth: [0, 2]}", "depth is between 0 (the first block) and 1 (the last)"),
        ("{}", "no ranges"),
    ],
)
def test_a_mistake_is_one_line(space, text, message):
    with pytest.raises(UserError) as error:
        space(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in registry.methods
        if registry.find_method(name).spec.edits and registry.find_method(name).Hparams.model_fields
    ],
)
@pytest.mark.parametrize("model", ["llama2-7b", "gpt-j-6b", "tiny/llama"])
def test_every_method_has_ranges_whose_draws_it_accepts(name, model):
    n_layers = {"llama2-7b": 32, "gpt-j-6b": 28, "tiny/llama": 4}[model]
    file = search_file(registry.find_method(name))
    assert file is not None
    for values in drawn(read_space(file, resolve(name, model, {}).values, n_layers), 5):
        assert resolve(name, model, values).values.items() >= values.items()
