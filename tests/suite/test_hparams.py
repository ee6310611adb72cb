import importlib
import sys
from pathlib import Path

import pytest

import methods
from harness import registry
from harness.errors import UserError
from harness.models import catalogue
from harness.suite import hparams
from harness.yaml_source import read_chain
from tests.helpers.commands import harness_here

FULL = """\
layer: {value: 1, source: "book"}
lr: {value: 0.1, source: "book"}
steps: {value: 2, source: "book"}
batch: {value: 3, source: "book"}
micro_batch: {value: 3, source: "book"}
norm_constraint: {value: null, source: "book"}
objective: {value: prompt_last, source: "book"}
weight_decay: {value: 0.0, source: "book"}
loss_stop: {value: 0.01, source: "book"}
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "default.yaml").write_text(FULL)
    return tmp_path


def test_the_most_specific_file_is_read(folder):
    assert hparams.find_file([folder], "tiny/llama").name == "default.yaml"
    (folder / "tiny.yaml").write_text(FULL)
    assert hparams.find_file([folder], "tiny/llama").name == "tiny.yaml"
    assert hparams.find_file([folder], "llama2-7b").name == "default.yaml"
    (folder / "tiny_llama.yaml").write_text(FULL)
    assert hparams.find_file([folder], "tiny/llama").name == "tiny_llama.yaml"
    assert hparams.find_file([folder / "empty"], "tiny/llama") is None


def test_the_files_of_every_implementation_are_in_the_package_of_its_class():
    home = Path(methods.__file__).parent / "hparams"
    for backend in (registry.NATIVE, "easyedit"):
        for name, method in registry.implementations(backend).all().items():
            assert hparams.folders_of(method)[-1] == home / name


PLUGIN = """\
from harness.api import Hparams, Method
from harness.registry import register


class SimpleHparams(Hparams):
    layer: int


@register("simple", title="Simple", family="weights", version=1)
class Simple(Method):
    Hparams = SimpleHparams

    def edit(self, model, requests, artifacts, context):
        raise NotImplementedError
"""


@pytest.mark.parametrize("file", ["plugged.py", "plugged/methods/simple.py"])
def test_a_plugin_has_its_files_next_to_its_file_or_in_its_package(tmp_path, monkeypatch, file):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(PLUGIN)
    home = tmp_path if file == "plugged.py" else tmp_path / "plugged"
    monkeypatch.syspath_prepend(str(tmp_path))
    name = file.removesuffix(".py").replace("/", ".")
    wanted = home / "hparams/simple/llama2-7b.yaml"
    try:
        importlib.import_module(name)
        with pytest.raises(UserError) as caught:
            hparams.resolve("simple", "llama2-7b", {}, at="s.yaml:2")
        missing = "s.yaml:2: method 'simple' has no value of 'layer' for llama2-7b: write hparams/simple/llama2-7b.yaml"
        assert str(caught.value) == missing
        wanted.parent.mkdir(parents=True)
        wanted.write_text("layer: {value: 3, source: book}\n")
        assert hparams.resolve("simple", "llama2-7b", {}).values == {"layer": 3}
    finally:
        registry.methods.discard("simple")
        for module in [module for module in sys.modules if module.partition(".")[0] == "plugged"]:
            del sys.modules[module]


def test_a_path_in_a_message_is_as_short_as_it_can_be_copied(folder, monkeypatch):
    (folder / "default.yaml").write_text(FULL.split("\n", 1)[1])
    monkeypatch.chdir(folder.parent)
    with pytest.raises(UserError, match=rf": write {folder.name}/tiny_llama\.yaml"):
        hparams.resolve("ft-l", "tiny/llama", {}, folder=folder)


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"unknown method 'romme' \(did you mean 'rome'\?\)"):
        hparams.resolve("romme", "llama2-7b", {})


@pytest.mark.parametrize(("model", "known"), [("llama2-7b", ["llama2-7b"]), ("mine", [])])
def test_an_unknown_option_suggests_a_command_that_shows_the_known_ones(model, known):
    spec = catalogue.entry("llama2-7b").spec
    with pytest.raises(UserError, match="unknown option 'zzz' of method 'ft-l'") as caught:
        hparams.resolve("ft-l", model, {"zzz": 1}, spec=spec)
    assert caught.value.fix == " ".join(["python -m harness hparams ft-l", *known])
    done = harness_here(*caught.value.fix.split()[3:])
    assert "norm_constraint" in done.stdout


def test_overrides_go_above_the_file_and_say_so(folder):
    resolved = hparams.resolve("ft-l", "llama2-7b", {"lr": 0.5, "steps": 9}, where={"lr": "s.yaml:3"}, folder=folder)
    assert (resolved.values["lr"], resolved.values["steps"], resolved.values["batch"]) == (0.5, 9, 3)
    assert (resolved.sources["lr"], resolved.sources["steps"]) == ("suite s.yaml:3", "suite")
    assert resolved.sources["batch"] == "book"


def test_a_variant_lies_between_file_and_overrides_and_variants_of_a_base_are_extended(folder):
    (folder / "default.yaml").write_text(
        FULL + "variants:\n  v: {lr: {value: 1.0, source: a}, steps: {value: 7, source: a}}\n"
    )
    (folder / "llama2-7b.yaml").write_text("extends: default.yaml\nvariants:\n  v: {lr: {value: 2.0, source: b}}\n")
    resolved = hparams.resolve("ft-l", "llama2-7b", {"steps": 8}, variant="v", folder=folder)
    assert (resolved.values["lr"], resolved.values["steps"]) == (2.0, 8)
    assert resolved.sources["lr"] == "b"


def test_a_value_never_inherits_the_source_of_another(folder):
    (folder / "llama2-7b.yaml").write_text("extends: default.yaml\nlr: {value: 2.0}\n")
    with pytest.raises(UserError, match=r"llama2-7b\.yaml:2: missing key 'source'"):
        hparams.resolve("ft-l", "llama2-7b", {}, folder=folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            FULL + "layr: {value: 1, source: x}\n",
            "default.yaml:10: unknown option 'layr' of method 'ft-l' (did you mean",
        ),
        (FULL.replace("value: 2,", "value: two,"), "default.yaml:3: steps: expected a whole number, found text 'two'"),
        (FULL.replace("value: 2,", "value: 0,"), "default.yaml:3: steps: input should be greater than or equal to 1"),
        (
            FULL.replace("prompt_last", "prompt_lst"),
            "default.yaml:7: objective: 'prompt_lst' is not one of prompt_last",
        ),
        (FULL.replace("value: 0.1,", "value: .inf,"), "default.yaml:2: lr: expected finite numbers, found inf"),
        (
            FULL.replace("value: 0.1,", "value: [1, .nan],"),
            "default.yaml:2: lr: expected finite numbers, found [1, nan]",
        ),
        (FULL + "extra: 3\n", "default.yaml:10: extra: expected {value: ..., source: ...}"),
        (FULL + "variants: [a]\n", "default.yaml:10: variants: expected a mapping"),
        (FULL.split("\n", 1)[1], "s.yaml:2: method 'ft-l' has no value of 'layer' for tiny/llama"),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_place(folder, text, message):
    (folder / "default.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        hparams.resolve("ft-l", "tiny/llama", {}, at="s.yaml:2", folder=folder)
    assert message in str(caught.value)


def test_a_file_that_lacks_a_value_is_told_what_to_extend(folder):
    (folder / "default.yaml").write_text(FULL)
    own = folder / "tiny_llama.yaml"
    own.write_text("lr: {value: 2.0, source: mine}\n")
    with pytest.raises(UserError, match=r"no value of 'layer' for tiny/llama in \S*tiny_llama\.yaml") as caught:
        hparams.resolve("ft-l", "tiny/llama", {}, folder=folder)
    assert caught.value.fix == "extends: default.yaml as its first line"

    own.write_text(f"extends: default.yaml\n{own.read_text()}")
    assert hparams.resolve("ft-l", "tiny/llama", {}, folder=folder).values["lr"] == 2.0

    (folder / "default.yaml").write_text(FULL.split("\n", 1)[1])
    with pytest.raises(UserError) as caught:
        hparams.resolve("ft-l", "tiny/llama", {}, folder=folder)
    assert caught.value.fix == "layer: {value: …, source: …}"


def test_a_method_without_a_file_has_no_variants():
    with pytest.raises(UserError, match=r"s\.yaml:2: method 'none' has no variant 'v'; no file for llama2-7b"):
        hparams.resolve("none", "llama2-7b", {}, variant="v", at="s.yaml:2")


def test_a_file_that_is_missing_leaves_the_defaults_of_the_class():
    assert hparams.resolve("none", "llama2-7b", {}).values == {}


def test_the_users_file_is_read_before_the_methods_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = hparams.resolve("ft-l", "tiny/llama", {})
    (tmp_path / "hparams/ft-l").mkdir(parents=True)
    (tmp_path / "hparams/ft-l/tiny_llama.yaml").write_text("extends: tiny.yaml\nlr: {value: 0.5, source: mine}\n")
    found = hparams.resolve("ft-l", "tiny/llama", {})
    assert found.values == {**before.values, "lr": 0.5}
    assert found.sources["lr"] == "mine"


@pytest.mark.parametrize(
    ("model", "layer", "layers"),
    [("llama2-7b", 27, [4, 5, 6, 7, 8]), ("llama3-70b", 69, list(range(10, 22))), ("tiny/llama", 3, [0, 1])],
)
def test_layers_can_be_a_share_of_the_depth(folder, model, layer, layers):
    (folder / "default.yaml").write_text(FULL.replace("layer: {value: 1,", "layer: {value: {depth: 0.87},"))
    assert hparams.resolve("ft-l", model, {}, folder=folder).values["layer"] == layer
    assert hparams.resolve("memit", model, {"layers": {"depth": [0.13, 0.26]}}).values["layers"] == layers


@pytest.mark.parametrize(
    ("model", "matrices"), [("llama2-7b", ["gate_proj", "up_proj", "down_proj"]), ("gpt-j-6b", ["fc_in", "fc_out"])]
)
def test_matrices_can_be_named_by_their_part_in_any_family(model, matrices):
    assert hparams.resolve("mend", model, {}).values["matrices"] == matrices
    assert hparams.resolve("mend", model, {"matrices": {"mlp": "last"}}).values["matrices"] == matrices[-1:]
    with pytest.raises(UserError, match=r"^s\.yaml:3: matrices: mlp: expected all or last, found 'first'"):
        hparams.resolve("mend", model, {"matrices": {"mlp": "first"}}, where={"matrices": "s.yaml:3"})


@pytest.mark.parametrize("share", [1.5, "half", [0.5], [0.6, 0.4], None])
def test_a_share_that_is_none_is_told_with_its_place(share):
    with pytest.raises(UserError, match=r"^s\.yaml:3: layer: depth: expected "):
        hparams.resolve("ft-l", "llama2-7b", {"layer": {"depth": share}}, where={"layer": "s.yaml:3"})


@pytest.mark.parametrize("method", ["ft-l", "rome", "memit", "alphaedit", "mend", "defer", "grace", "wise", "onceedit"])
def test_a_model_without_a_file_has_the_values_of_llama2_at_its_own_depth(method):
    known = hparams.resolve(method, "llama2-7b", {}).values
    found = hparams.resolve(method, "qwen2.5-1.5b", {})
    layers = {"layer", "layers"} & set(known)
    ours = {key for key, source in found.sources.items() if source.startswith(("our choice", "measured"))}
    assert {key: value for key, value in found.values.items() if key not in layers | ours} == {
        key: value for key, value in known.items() if key not in layers | ours
    }
    assert all("share of the depth" in found.sources[key] for key in layers)


GATE_AND_UP = {"layers": [11, 12, 13, 14, 15], "matrices": ["gate_proj"], "further": {"up_proj": list(range(18, 25))}}


@pytest.mark.parametrize(
    ("method", "model", "values"),
    [
        *[(method, "llama3-8b", GATE_AND_UP) for method in ("ultraedit", "emsedit", "malmen")],
        (
            *("ultraedit", "qwen2.5-7b"),
            {"layers": list(range(18, 27)), "matrices": ["gate_proj", "up_proj"], "further": {}, "batch": 100},
        ),
        ("ultraedit", "gpt-j-6b", {"layers": list(range(18, 27)), "matrices": ["fc_out"], "batch": 100}),
        ("emsedit", "qwen2.5-7b", {"layers": [17, 18, 19], "matrices": ["down_proj"], "further": {}}),
        ("rome", "qwen2.5-7b", {"layers": [5], "v_lr": 0.5, "v_weight_decay": 1e-3}),
        ("memit", "llama3-8b", {"layers": [4, 5, 6, 7, 8], "v_lr": 0.1, "v_clamp": 0.75, "moments": "corpus"}),
        ("memit", "qwen2.5-7b", {"layers": [4, 5, 6, 7, 8], "v_lr": 0.5, "v_clamp": 4.0, "moments": "corpus"}),
        ("alphaedit", "llama3-8b", {"layers": [4, 5, 6, 7, 8], "v_lr": 0.1, "norm_weight": 10.0, "moments": "corpus"}),
        ("alphaedit", "qwen2.5-7b", {"v_lr": 0.5, "v_clamp": 4.0, "norm_weight": 1.0, "moments": "corpus"}),
        ("wise", "llama3-8b", {"layer": 29, "steps": 30, "lr": 0.9, "alpha": 2.0, "act_ratio": 0.5}),
        ("wise", "qwen2.5-7b", {"layer": 23, "steps": 70, "alpha": 5.0}),
        ("ft-l", "qwen2.5-7b", {"layer": 27, "norm_constraint": 5e-5}),
        ("grace", "qwen2.5-7b", {"layer": 18, "steps": 50}),
        ("mend", "qwen2.5-7b", {"layers": [25, 26, 27], "steps": 2000, "patience": 400}),
        *[
            ("onceedit", model, {"relative": "deepen", "anchors": "deepen"})
            for model in ("llama2-7b", "llama3-8b", "llama3-70b", "mistral-7b-v0.3", "qwen2.5-7b")
        ],
    ],
)
def test_a_model_has_the_values_that_are_published_for_it(method, model, values):
    found = hparams.resolve(method, model, {}).values
    assert {key: found[key] for key in values} == values


@pytest.mark.parametrize(
    ("model", "values"),
    [
        ("llama2-7b", {"matrices": ["q_proj", "v_proj"], "scale": 4.0, "lr": 5e-3, "steps": 70, "batch": 1}),
        ("llama3-8b", {"matrices": ["q_proj", "v_proj"], "scale": 4.0, "lr": 5e-3, "steps": 70, "batch": 1}),
        ("qwen2.5-7b", {"matrices": ["q_proj", "v_proj"], "scale": 4.0, "lr": 5e-3, "steps": 60, "batch": 1}),
        ("gpt-j-6b", {"matrices": ["fc_in", "fc_out"], "scale": 4.0, "lr": 5e-3, "steps": 50, "batch": 1}),
        ("tiny/llama", {"matrices": None, "scale": 2.0, "lr": 5e-3, "steps": 70, "batch": 200}),
    ],
)
def test_lora_as_in_easyedit_has_the_values_of_its_files(model, values):
    found = hparams.resolve("lora", model, {}, variant="faithful-easyedit").values
    assert {key: found[key] for key in values} == values
    assert hparams.resolve("lora", model, {}).values["matrices"] is None


SHIPPED = sorted(
    file for file in (Path(methods.__file__).parent / "hparams").glob("*/*.yaml") if file.name != hparams.SEARCH
)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_shipped_file_and_variant_is_complete_and_accepted(file):
    named = {name.replace("/", "_"): name for name in catalogue.names()} | {"tiny": "tiny/llama"}
    model, method = named.get(file.stem, "qwen2.5-1.5b"), file.parent.name
    assert method in registry.methods
    variants = {name for document in read_chain(file) for name in document.plain().get("variants", {})}
    for variant in (None, *variants):
        resolved = hparams.resolve(method, model, {}, variant=variant)
        assert "default" not in resolved.sources.values()
