import pytest

from harness.errors import UserError
from harness.suite import load_suite
from tests.suite.conftest import BASE


def _refusal(path, **options) -> str:
    with pytest.raises(UserError) as caught:
        load_suite(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("protcols: [generation]\n", "suite.yaml:5: unknown key 'protcols' in the file (did you mean 'protocols'?)"),
        ("seeds: [0]\nseeds: [1]\n", "suite.yaml:6: duplicate key 'seeds', first on line 5"),
        ("seeds: 0\n", "suite.yaml:5: seeds: expected a list, found a number '0'"),
        ("seeds: [zero]\n", "suite.yaml:5: seeds[0]: expected a whole number, found text 'zero'"),
        ("seeds: [true]\n", "seeds[0]: expected a whole number, found true or false"),
        ("seeds: []\n", "suite.yaml:5: seeds: is empty; it needs at least one entry"),
        ("protocols: []\n", "suite.yaml:5: protocols: is empty"),
        ("prompts: []\n", "suite.yaml:5: prompts: is empty"),
        (
            "prompts: [none,\n  papr]\n",
            "suite.yaml:6: prompts[1]: 'papr' is not one of none, paper (did you mean 'paper'?)",
        ),
        (
            "protocols: [generate]\n",
            "suite.yaml:5: unknown protocol 'generate' (did you mean 'generation'?)",
        ),
        (
            "tables: [mian]\n",
            "suite.yaml:5: unknown table 'mian' (did you mean 'main'?)",
        ),
        ("backend: nativ\n", "suite.yaml:5: unknown backend 'nativ' (did you mean 'native'?)"),
        ("device: gpu\n", "suite.yaml:5: device: 'gpu' is not one of auto, cpu, cuda"),
        ("eval_batch: 0\n", "suite.yaml:5: eval_batch: input should be greater than or equal to 1, found a number '0'"),
        (
            "schedule: {sequential: {blok: 2, score_at: [1]}}\n",
            "unknown key 'blok' in schedule.sequential (did you mean",
        ),
        ("schedule: {sequential: {block: 2, score_at: []}}\n", "schedule.sequential.score_at: is empty"),
        ("schedule: {sequential: {block: 2, score_at: [4, 2]}}\n", "score_at must be strictly increasing"),
        (
            "schedule: sequential\n",
            "suite.yaml:5: schedule: expected batch or {sequential: {block: ..., score_at: [...]}}, found text",
        ),
        ("prompts: [none, none]\n", "suite.yaml:5: prompts: 'none' is listed twice"),
        ("extends: nowhere.yaml\n", "suite.yaml:5: extends: no such file: nowhere.yaml"),
        ("extends: suite.yaml\n", "suite.yaml:5: extends: files extend each other in a circle"),
    ],
)
def test_a_mistake_at_the_top_level_is_reported_in_one_line_with_its_location(write, more, message):
    assert message in _refusal(write(more))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("llama2-7b", "lama2-7b", "suite.yaml:2: unknown model 'lama2-7b' (did you mean 'llama2-7b'?)"),
        ("ft-l", "ftl", "suite.yaml:3: unknown method 'ftl' (did you mean 'ft-l'?)"),
        ("zsre", "zsrre", "suite.yaml:4: unknown dataset 'zsrre' (did you mean 'zsre'?)"),
        ("models:", "modles:", "suite.yaml:2: unknown key 'modles' in the file (did you mean 'models'?) (and 1 more)"),
        ("name: tiny\n", "", "suite.yaml:1: missing key 'name' in the file"),
        ("name: tiny", "name: a/b", "suite.yaml:1: name: string should match pattern"),
        ("[none, ft-l]", "[]", "suite.yaml:3: methods: is empty; it needs at least one entry"),
        ("edits: 100", "edts: 100", "suite.yaml:4: unknown key 'edts' in datasets[0] (did you mean 'edits'?)"),
        ("edits: 100", "edits: many", "suite.yaml:4: datasets[0].edits: expected a whole number, found text 'many'"),
        ("llama2-7b", "{path: x}", "suite.yaml:2: missing key 'name' in models[0]"),
        ("llama2-7b", "{name: llama2-7b, dtype: float23}", "models[0].dtype: 'float23' is not one of float32,"),
        ("llama2-7b", "gpt-j-6b", "suite.yaml:2: models: 'gpt-j-6b' is listed twice"),
        (
            "[none, ft-l]",
            "[ft-l, {name: ft-l, hparams: {lr: 1.0}}]",
            "'ft-l' is listed twice; give one of them a label",
        ),
        ("ft-l", "{name: ft-l, lable: x}", "suite.yaml:3: unknown option 'lable' of method 'ft-l'"),
        ("ft-l", "{name: ft-l, hparams: {layr: 3}}", "unknown option 'layr' of method 'ft-l' (did you mean 'layer'?)"),
        ("ft-l", "{name: ft-l, layer: deep}", "suite.yaml:3: layer: expected a whole number, found text 'deep'"),
        (
            "ft-l",
            "{name: ft-l, layer: 3, hparams: {layer: 4}}",
            "'layer' is given both next to the name and under hparams",
        ),
        ("ft-l", "{name: ft-l, variant: constraind}", "no variant 'constraind' (did you mean 'constrained'?)"),
        ("none", "{name: none, lr: 1}", "suite.yaml:3: unknown option 'lr' of method 'none', which has none"),
        (
            "ft-l",
            "{name: ft-l, backend: easyedt}",
            "suite.yaml:3: unknown backend 'easyedt' (did you mean 'easyedit'?)",
        ),
    ],
)
def test_a_mistake_in_an_axis_is_reported_in_one_line_with_its_location(write, old, new, message):
    assert message in _refusal(write(base=BASE.replace(old, new)))


def test_an_unknown_option_is_also_compared_with_the_keys_of_the_entry(write):
    assert "(did you mean 'label'?)" in _refusal(write(base=BASE.replace("ft-l", "{name: ft-l, lable: x}")))


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (
            "methd=none",
            "--only 'methd=none': expected model=NAME,…, method=NAME,…, dataset=NAME,… (did you mean 'method'?)",
        ),
        ("method", "--only 'method': expected"),
        ("method=", "method=NAME,…, dataset=NAME,…"),
        ("method=rome", "--only: the suite has no method 'rome'; it has ft-l, none"),
        ("model=gpt-j-6", "the suite has no model 'gpt-j-6' (did you mean 'gpt-j-6b'?)"),
    ],
)
def test_a_filter_that_matches_nothing_is_refused(write, only, message):
    assert message in _refusal(write(), only=[only])


def test_an_unknown_scale_is_refused(write):
    assert "unknown scale 'mni' (did you mean 'mini'?); known: mini, paper" in _refusal(write(), scale="mni")


def test_a_missing_data_folder_is_refused_with_its_origin(write, monkeypatch):
    assert "--data: no such folder: nowhere" in _refusal(write(), data="nowhere")
    monkeypatch.setenv("HARNESS_DATA", "nowhere")
    assert "HARNESS_DATA: no such folder: nowhere" in _refusal(write())


def test_a_file_in_place_of_a_folder_is_refused_with_what_to_write(write, monkeypatch):
    refusal = _refusal(write(), data="suite.yaml")
    assert "--data: a file where a folder is expected: suite.yaml → " in refusal
    assert refusal.endswith("--data .")
    monkeypatch.setenv("HARNESS_DATA", "suite.yaml")
    assert _refusal(write()).endswith("a folder is expected: suite.yaml → export HARNESS_DATA=.")


def test_zero_edits_are_refused(write):
    assert "--edits 0" in _refusal(write(), edits=0)


def test_an_unknown_backend_on_the_command_line_is_refused(write):
    assert "--backend: unknown backend 'nativ' (did you mean 'native'?)" in _refusal(write(), backend="nativ")


def test_a_suite_that_extends_another_needs_its_own_name(write):
    write(name="base.yaml")
    assert "needs its own name" in _refusal(write("extends: base.yaml\n", base=""))


def test_a_mistake_in_a_base_is_reported_with_its_location(write):
    write("tables: [mian]\n", name="base.yaml")
    assert "base.yaml:5: unknown table 'mian'" in _refusal(write("extends: base.yaml\nname: over\n", base=""))
