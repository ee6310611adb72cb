import json
import subprocess
import sys

import pytest

from harness.errors import UserError
from harness.models import catalogue, checkpoint
from harness.models.architecture import TABULATED
from harness.models.catalogue import CATALOGUE, ModelRef, download_note, entry, names, reference
from harness.models.linear import is_linear, weight_of
from harness.records import DataRef
from tests.helpers.tiny_models import FAMILIES, tiny_spec

PUBLISHED_PARAMETERS = {
    "llama2-7b": 6_738_415_616,
    "mistral-7b-v0.1": 7_241_732_096,
    "gpt-j-6b": 6_050_882_784,
    "tinyllama-1.1b": 1_100_048_384,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "mistral-7b-v0.3": 7_248_023_552,
}
CORPUS = DataRef("zsre", "synthetic", edits=5, sha256="ab")


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_the_shape_of_an_entry_makes_the_published_number_of_parameters(name):
    assert entry(name).spec.parameters == PUBLISHED_PARAMETERS[name]


def test_the_shapes_of_an_entry_and_of_a_configuration_are_those_of_the_modules_of_every_architecture(tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from harness.models.random_weights import configuration

    tiny = [name for name in names() if entry(name).is_trained_here]
    entries = [entry(name).spec for name in ("llama3-70b", "mistral-7b-v0.3", "gpt-j-6b", "qwen2.5-1.5b", *tiny)]
    for made in (*entries, *map(tiny_spec, FAMILIES)):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(configuration(made))
        if made.architecture in TABULATED:
            assert sum(parameter.numel() for parameter in model.parameters()) == made.parameters, made.architecture
            model.config.save_pretrained(tmp_path)
            config = json.loads((tmp_path / "config.json").read_text())
            assert checkpoint.described(config) == {n: tuple(p.shape) for n, p in model.named_parameters()}, (
                made.architecture
            )
        layout = made.layout
        paths = [layout.block, layout.attention, layout.mlp, layout.value_matrix, layout.final_norm, layout.head]
        for path in (*paths, layout.value_norm, layout.positions, layout.project_in, layout.project_out):
            model.get_submodule((path or "").format(0))
        value_matrix = model.get_submodule(layout.value_matrix.format(0))
        assert tuple(weight_of(value_matrix).shape) == (made.hidden, made.ffn)
        holder = model.get_submodule(layout.mlp.format(0))
        assert layout.matrices == tuple(name for name, child in holder.named_children() if is_linear(child))
        assert model.get_submodule(layout.embeddings) is model.get_input_embeddings()


def test_memory_follows_the_precision():
    assert entry("llama2-7b").spec.memory_bytes() == 2 * 6_738_415_616
    assert entry("llama2-7b").spec.memory_bytes("float32") == 4 * 6_738_415_616


def test_an_unknown_model_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match=r"unknown model 'lama2-7b' \(did you mean 'llama2-7b'"):
        entry("lama2-7b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "llama2-7b", "dtype": "bfloat61"}, "did you mean 'bfloat16'"),
        ({"name": "llama2-7b", "weights": "trained"}, "cannot be trained on the spot"),
        ({"name": "tiny/llama", "weights": "trained", "source": "x/y"}, "has no source"),
        ({"name": "tiny/llama", "weights": "pretrained"}, "no published weights"),
        ({"name": "llama2-7b", "source": "/no/such/folder"}, "no model folder at /no/such/folder"),
        ({"name": "llama2-7b", "source": "no/such/folder"}, "no model folder at no/such/folder"),
        ({"name": "llama2-7b", "source": __file__}, "a file where a model folder is expected"),
        ({"name": "llama2-7b", "weights": "random", "source": "/no/such/folder"}, "no tokenizer in /no/such/folder"),
        ({"name": "llama2-7b", "weights": "random", "revision": "v2"}, "only a model from the hub has a revision"),
        ({"name": "tiny/llama", "revision": "v2"}, "only a model from the hub has a revision"),
        ({"name": "llama2-7b", "source": ".", "revision": "v2"}, "'.' is not on the hub and has no revision 'v2'"),
    ],
)
def test_a_reference_that_cannot_be_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        reference(**arguments)
    assert "\n" not in str(raised.value)


def test_a_name_decides_how_its_weights_are_made():
    assert reference("tiny/llama", corpus=CORPUS) == ModelRef("tiny/llama", "trained", "", "float32", CORPUS)
    hub = reference("llama2-7b")
    assert (hub.weights, hub.source, hub.dtype) == ("pretrained", "meta-llama/Llama-2-7b-hf", "bfloat16")
    assert reference("llama3-70b", weights="random").weights == "random"
    elsewhere = reference("tiny/llama", source="owner/name")
    assert (elsewhere.weights, elsewhere.source) == ("pretrained", "owner/name")


def test_another_source_precision_or_corpus_is_another_model_and_another_path_to_the_corpus_is_not():
    assert reference("llama2-7b").identity() != reference("llama2-7b", source="other/llama").identity()
    assert reference("llama2-7b").identity() != reference("llama2-7b", revision="v2").identity()
    assert reference("llama2-7b").identity() != reference("llama2-7b", dtype="float32").identity()
    assert reference("llama2-7b").identity() != reference("llama2-7b", weights="random").identity()
    elsewhere = DataRef("zsre", "elsewhere", edits=5, sha256="ab")
    assert reference("tiny/llama", corpus=CORPUS).identity() == reference("tiny/llama", corpus=elsewhere).identity()


def test_only_pretrained_weights_can_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert download_note(reference("tiny/llama", corpus=CORPUS)) is None
    assert download_note(reference("llama3-70b", weights="random")) is None
    published = "meta-llama/Llama-2-7b-hf"
    assert download_note(reference("llama2-7b")) == f"{published} is not on this machine (13 GB to download)"
    at = reference("llama2-7b", revision="v2")
    assert download_note(at) == f"{published} at v2 is not on this machine (13 GB to download)"


def test_titles_and_hub_ids_are_unique():
    for attribute in ("title", "hub_id"):
        values = [getattr(made, attribute) for made in CATALOGUE.values() if getattr(made, attribute)]
        assert len(values) == len(set(values))


def test_the_catalogue_imports_no_torch():
    code = f"import sys, {catalogue.__name__} as c; c.download_note(c.reference('llama2-7b')); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "pandas", "mlflow"} & set(loaded)
