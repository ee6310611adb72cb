from pathlib import Path

import pytest

from harness.errors import UserError
from harness.models import catalogue
from harness.suite import load_suite, scale
from harness.suite.collection import read_collection
from tests.suite.conftest import BASE, named

ROOT = Path(__file__).parents[2]


def test_without_a_scale_a_suite_runs_as_written(write):
    path = write()
    assert load_suite(path) == load_suite(path, scale="paper")
    assert load_suite(path).scale == "paper"


def test_the_mini_scale_replaces_models_caps_edits_and_runs_locally(write):
    suite = load_suite(write("prompts: [none, paper]\nlaunch: a100\n"), scale="mini")
    assert [(model.name, model.asked) for model in suite.models] == [
        ("tiny/llama", "llama2-7b"),
        ("tiny/gptj", "gpt-j-6b"),
    ]
    data = suite.datasets[0]
    assert (data.edits, data.split, data.source, data.strip_distractor) == (50, "test", "synthetic", True)
    assert (suite.prompts, suite.launch, suite.device) == (("none",), "local", "cpu")


def test_a_cap_never_raises_the_number_of_edits(write):
    assert load_suite(write(base=BASE.replace("100", "7")), scale="mini").datasets[0].edits == 7


SEQUENCE = "schedule: {sequential: {block: 20, score_at: [100]}}\n"


def test_a_scale_never_raises_the_number_of_records_to_learn_from(write):
    for asked, given in ((16, 16), (500, 200)):
        suite = load_suite(write(base=BASE.replace("100", f"100, train: {asked}")), scale="mini")
        assert suite.datasets[0].train == given


def test_a_scale_never_raises_the_number_of_unrelated_records(write):
    for asked, given in ((0, 0), (500, 50)):
        suite = load_suite(write(base=BASE.replace("100", f"100, unrelated: {asked}")), scale="mini")
        assert suite.datasets[0].unrelated == given


def test_what_a_suite_says_about_distractors_device_batches_and_threads_holds_at_every_scale(write):
    base = BASE.replace("100", "100, strip_distractor: false")
    suite = load_suite(write("device: cuda\neval_batch: 8\nthreads: 4\n", base=base), scale="mini")
    assert (suite.datasets[0].strip_distractor, suite.device) == (False, "cuda")
    assert (suite.eval_batch, suite.threads) == (8, 4)
    suite = load_suite(write(), scale="mini")
    assert (suite.device, suite.eval_batch, suite.threads) == ("cpu", 64, 1)


def test_a_sequence_has_its_own_cap(write):
    assert load_suite(write(SEQUENCE, base=BASE.replace("100", "300")), scale="mini").datasets[0].edits == 100
    assert load_suite(write(base=BASE.replace("100", "300")), scale="mini").datasets[0].edits == 50


def test_without_its_own_cap_a_sequence_uses_that_of_a_batch(write, tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "SCALES", tmp_path)
    (tmp_path / "short.yaml").write_text("cap: {edits: 3}\n")
    (tmp_path / "long.yaml").write_text("cap: {edits_in_sequence: 30}\n")
    assert load_suite(write(SEQUENCE), scale="short").datasets[0].edits == 3
    assert load_suite(write(SEQUENCE), scale="long").datasets[0].edits == 30
    assert load_suite(write(), scale="long").datasets[0].edits == 100


def test_edits_from_the_command_line_override_the_cap(write):
    assert load_suite(write(), scale="mini", edits=80).datasets[0].edits == 80


def test_a_data_folder_takes_precedence_over_synthetic_records(write, tmp_path):
    (tmp_path / "records").mkdir()
    assert load_suite(write(), scale="mini", data="records").datasets[0].source == "records"


def test_models_that_share_a_stand_in_are_merged(write):
    suite = load_suite(write(base=BASE.replace("gpt-j-6b", "llama3-8b, tiny/llama")), scale="mini")
    assert [model.name for model in suite.models] == ["tiny/llama"]


def test_a_filter_can_name_a_model_or_its_stand_in(write):
    path = write()
    by_name = load_suite(path, scale="mini", only=["model=gpt-j-6b"])
    assert by_name.models == load_suite(path, scale="mini", only=["model=tiny/gptj"]).models


def test_a_stand_in_does_not_inherit_precision_and_path(write, tmp_path):
    (tmp_path / "weights").mkdir()
    entry = "{name: llama2-7b, path: weights, dtype: bfloat16, weights: random}"
    model = load_suite(write(base=BASE.replace("llama2-7b", entry)), scale="mini").models[0]
    assert (model.source, model.dtype, model.weights) == ("", None, None)


def test_hyper_parameters_of_tiny_models_are_used_for_stand_ins(write):
    values = named(load_suite(write(), scale="mini").methods[1].hparams)["tiny/llama"].values
    assert (values["layer"], values["lr"]) == (3, 5e-3)


def test_an_option_that_names_a_model_is_mapped_and_others_are_not(write):
    path = write(base=BASE.replace("ft-l", "{name: onceedit, plugin: tinyllama-1.1b, lr: 0.5}"))
    hparams = named(load_suite(path, scale="mini").methods[1].hparams)["tiny/llama"]
    assert (hparams.values["plugin"], hparams.values["lr"]) == ("tiny/tinyllama", 0.5)
    assert hparams.sources["plugin"].startswith("suite suite.yaml:3 (")
    assert "mini.yaml" in hparams.sources["plugin"]


def test_an_option_that_is_an_entry_of_a_model_is_mapped_to_its_stand_in(write):
    path = write(base=BASE.replace("ft-l", "onceedit"))  # the plug-in is that of the method's file
    hparams = named(load_suite(path, scale="small").methods[1].hparams)["smollm2-135m"]
    assert hparams.values["plugin"] == "smollm2-135m"
    assert "small.yaml" in hparams.sources["plugin"]
    path = write(base=BASE.replace("ft-l", "{name: onceedit, plugin: {name: tinyllama-1.1b, revision: v2}}"))
    written = named(load_suite(path).methods[1].hparams)["llama2-7b"].values["plugin"]
    assert {key: value for key, value in written.items() if value} == {"name": "tinyllama-1.1b", "revision": "v2"}
    assert named(load_suite(path, scale="mini").methods[1].hparams)["tiny/llama"].values["plugin"] == "tiny/tinyllama"


@pytest.mark.parametrize("name", [name for name in catalogue.names() if not name.startswith("tiny/")])
def test_every_model_of_the_catalogue_has_a_stand_in(name):
    assert scale.load_scale("mini").form.model_map[name].startswith("tiny/")


def test_the_small_scale_puts_two_pretrained_models_in_place_of_a_suite_s_models_and_edits_real_records():
    suite = load_suite(ROOT / "suites/main_table.yaml", scale="small")
    assert [model.name for model in suite.models] == ["smollm2-135m", "gemma-3-270m"]
    plugins = {values.values["plugin"] for values in suite.methods[-1].hparams.values()}
    assert plugins == {"smollm2-135m"}
    assert {(data.edits, data.split, data.source) for data in suite.datasets} == {(20, "test", "")}


def test_at_small_scale_every_method_of_the_main_table_has_settings_that_need_no_text_besides_the_records():
    suite = load_suite(ROOT / "suites/main_table.yaml", scale="small")
    for method in suite.methods:
        assert not method.problems
        for model in ("smollm2-135m", "gemma-3-270m"):
            assert named(method.hparams)[model].values.get("moments") in (None, "identity", "train_prompts"), (
                method.name
            )
            assert "default" not in named(method.hparams)[model].sources.values()


@pytest.mark.parametrize("scale_name", ["paper", "mini", "small"])
def test_every_editor_has_settings_for_layers_that_its_model_has(scale_name):
    for method in load_suite(ROOT / "suites/editors.yaml", scale=scale_name).methods:
        for model, settings in named(method.hparams).items():
            layers = settings.values.get("layers", [settings.values.get("layer", 0)])
            n_layers = catalogue.reference(model).footprint.n_layers
            assert all(layer < n_layers for layer in layers), (method.label, model)


@pytest.mark.parametrize("name", [name for name in catalogue.names() if not name.startswith("tiny/")])
def test_every_model_of_the_catalogue_is_a_pretrained_model_at_small_scale_or_has_one_in_its_place(name):
    mapped = scale.load_scale("small").form.model_map
    assert mapped.get(name, name) in {"smollm2-135m", "gemma-3-270m"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cap: {edit: 5}\n", "odd.yaml:1: unknown key 'edit' in cap (did you mean 'edits'?)"),
        ("model_map: {llama2-7b: tiny/lama}\n", "odd.yaml:1: unknown model 'tiny/lama' (did you mean 'tiny/llama'?)"),
        ("set:\n  backend: nativ\n", "odd.yaml:2: unknown backend 'nativ' (did you mean 'native'?)"),
        ("set: {prompts: []}\n", "odd.yaml:1: set.prompts: is empty"),
        (
            "set: {datasets: {split: tets}}\n",
            "set.datasets.split: 'tets' is not one of test, dev, all (did you mean 'test'?)",
        ),
        ("model_map: {gpt-j-6b: tiny/gptj}\n", "scale 'odd' has no stand-in for 'llama2-7b'"),
    ],
)
def test_a_mistake_in_a_scale_is_reported_in_one_line_with_its_location(write, tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(scale, "SCALES", tmp_path)
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_suite(write(), scale="odd")
    assert message in str(caught.value)


def test_a_scale_without_stand_ins_keeps_the_models(write, tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "SCALES", tmp_path)
    (tmp_path / "short.yaml").write_text("cap: {edits: 3}\n")
    suite = load_suite(write(), scale="short")
    assert [model.name for model in suite.models] == ["llama2-7b", "gpt-j-6b"]
    assert suite.datasets[0].edits == 3


SUITES = sorted(file for file in (ROOT / "suites").glob("*.yaml") if read_collection(file) is None)


@pytest.mark.parametrize("scale_name", ["paper", "mini", "small"])
@pytest.mark.parametrize("file", SUITES, ids=lambda file: file.stem)
def test_every_shipped_suite_loads_at_every_scale(file, scale_name):
    suite = load_suite(file, scale=scale_name)
    assert suite.name == file.stem
    assert suite.tables or suite.figures


@pytest.mark.parametrize("file", SUITES, ids=lambda file: file.stem)
def test_shipped_suites_score_no_setting_on_the_records_that_it_was_chosen_on(file):
    suite = load_suite(file)
    tuned = [entry for entry in suite.methods if entry.variant == "plus" or entry.name in ("retrieval", "ike")]
    splits = {entry.split for entry in suite.datasets if entry.name in ("zsre", "counterfact")}
    assert not tuned or splits <= {"test"}


def test_a_scale_asks_its_own_tasks_in_place_of_those_that_have_no_file(write, tmp_path, monkeypatch):
    monkeypatch.delenv("HARNESS_CAPABILITY", raising=False)
    file = tmp_path / "gsm8k.jsonl"
    tasks = f"capability: [mmlu, perplexity, {{name: gsm8k, path: {file}, items: 7}}]\n"
    path = write()
    path.write_text(path.read_text() + tasks)
    suite = load_suite(path, scale="mini")
    assert [(task.name, task.path) for task in suite.capability] == [
        ("perplexity", ""),
        ("gsm8k", str(file)),
        ("facts", ""),
    ]
    assert [task.name for task in load_suite(path).capability] == ["mmlu", "perplexity", "gsm8k"]
    monkeypatch.setenv("HARNESS_CAPABILITY", str(tmp_path))
    small = load_suite(path, scale="small").capability
    assert [(task.name, task.path, task.items) for task in small] == [
        ("mmlu", str(tmp_path), 100),
        ("perplexity", "", 100),
        ("gsm8k", str(file), 7),
    ]


def test_an_unknown_task_is_one_line_with_a_suggestion(write):
    path = write()
    path.write_text(path.read_text() + "capability: [mmul]\n")
    with pytest.raises(UserError, match=r"unknown capability task 'mmul' \(did you mean 'mmlu'\?\)"):
        load_suite(path)
