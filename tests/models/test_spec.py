import json
import shutil

import pytest

from harness.errors import UserError
from harness.models import catalogue, spec
from harness.models.catalogue import ModelRef, reference
from harness.models.loading import load
from harness.models.random_weights import shell
from tests.helpers.small_suites import small_spec, write_checkpoint
from tests.helpers.tiny_gguf import write_gguf
from tests.helpers.tiny_models import ARCHITECTURES, FAMILIES

SIZES = ("n_layers", "hidden", "ffn", "vocab", "n_heads", "max_positions", "head_size", "tied", "architecture")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Folders with a model of each family."""
    home = tmp_path_factory.mktemp("families")
    for architecture in (*ARCHITECTURES, *FAMILIES):
        write_checkpoint(home / architecture, architecture)
    return home


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *FAMILIES])
def test_a_folder_of_any_family_says_its_shape_layout_bos_and_size(architecture, home):
    found, wanted = spec.of_folder(home / architecture), small_spec(architecture)
    assert {name: getattr(found, name) for name in SIZES} == {name: getattr(wanted, name) for name in SIZES}
    assert found.layout == wanted.layout
    assert found.adds_bos == (architecture != "gptj")
    assert found.dtype == "float32"
    assert found.counted == sum(parameter.numel() for parameter in shell(wanted).parameters())


def test_a_folder_without_an_entry_is_loaded_by_any_name(home):
    ref = reference("my-model", source=str(home / "qwen3"))
    assert (ref.weights, ref.title, ref.spec.architecture) == ("pretrained", "my-model", "qwen3")
    assert ref.sha256 == reference("another-name", source=str(home / "qwen3")).sha256
    assert load(ref, "cpu").spec.n_layers == ref.spec.n_layers


def test_a_folder_with_a_configuration_and_a_tokenizer_has_random_weights(home, tmp_path):
    shutil.copytree(home / "gpt2", tmp_path / "no-weights", ignore=shutil.ignore_patterns("*.safetensors"))
    ref = reference("mine", weights="random", source=str(tmp_path / "no-weights"))
    assert ref.spec.parameters == spec.of_folder(home / "gpt2").parameters
    assert load(ref, "cpu").spec.architecture == "gpt2"


def test_the_layout_is_in_the_identity_only_where_a_suite_states_it(home):
    plain = reference("mine", source=str(home / "llama"))
    stated = reference("mine", source=str(home / "llama"), layout=plain.spec.layout)
    assert "layout" not in plain.identity()
    assert stated.identity()["layout"] == plain.spec.layout
    assert plain != stated


def test_what_is_known_of_a_model_is_no_part_of_its_identity():
    with_facts = ModelRef("llama2-7b", "random", known=catalogue.entry("llama3-8b").spec)
    assert with_facts == ModelRef("llama2-7b", "random")


def test_the_header_of_a_gguf_file_says_the_same_as_the_model(tmp_path):
    found = spec.of_gguf(write_gguf(tmp_path / "model.gguf"))
    assert (found.architecture, found.n_layers, found.hidden, found.n_heads) == ("llama", 2, 32, 4)
    assert found.layout == catalogue.entry("llama2-7b").spec.layout
    assert found.parameters > 0


@pytest.mark.parametrize("missing", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_a_configuration_of_no_language_model_is_refused_in_one_line(missing):
    config = {"num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 9, "num_attention_heads": 2, "model_type": "odd"}
    with pytest.raises(
        UserError, match=r"c\.json: transformers cannot read it: Unrecognized|does not describe a causal"
    ):
        spec.of_config({key: value for key, value in config.items() if key != missing}, adds_bos=False, where="c.json")


def test_sizes_that_a_configuration_leaves_out_are_the_defaults_of_its_type():
    found = spec.of_config({"model_type": "mistral", "num_hidden_layers": 2}, adds_bos=True)
    assert (found.hidden, found.n_heads, found.n_kv_heads, found.vocab) == (4096, 32, 8, 32000)


@pytest.mark.parametrize(
    ("processor", "wanted"),
    [
        (None, False),
        ({"type": "ByteLevel", "trim_offsets": True}, False),
        ({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}]}, False),
        ({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]}, True),
        ({"type": "RobertaProcessing", "cls": ["<s>", 0], "sep": ["</s>", 1]}, True),
        (
            {
                "type": "Sequence",
                "processors": [
                    {"type": "ByteLevel"},
                    {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}]},
                ],
            },
            True,
        ),
    ],
)
def test_bos_is_what_the_post_processor_puts_first(processor, wanted, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"post_processor": processor}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<s>"}}))
    assert spec.adds_bos(tmp_path) == wanted


@pytest.mark.parametrize("name", catalogue.names())
def test_a_shipped_configuration_makes_the_model_that_transformers_makes_of_it(name):
    made = catalogue.entry(name).spec
    if made.parameters < 1e9:
        assert made.parameters == sum(parameter.numel() for parameter in shell(made).parameters())
