import subprocess
import sys

import pytest

from harness import registry
from harness.errors import UserError
from harness.suite import Schedule, load_suite, suite_json_schema
from tests.suite.conftest import BASE, named


def test_a_bare_name_and_a_mapping_are_the_same_entry(write):
    bare = load_suite(write())
    mapped = load_suite(write(base=BASE.replace("[llama2-7b", "[{name: llama2-7b}")))
    assert bare == mapped


def test_options_can_be_next_to_the_name_or_under_hparams(write):
    loose = load_suite(write(base=BASE.replace("ft-l", "{name: ft-l, layer: 5}")))
    under = load_suite(write(base=BASE.replace("ft-l", "{name: ft-l, hparams: {layer: 5}}")))
    assert loose == under
    hparams = named(loose.methods[1].hparams)["llama2-7b"]
    assert hparams.values["layer"] == 5
    assert hparams.sources["layer"] == "suite suite.yaml:3"
    assert hparams.sources["lr"].startswith("OnceEdit")


def test_each_model_uses_the_hyper_parameters_of_its_own_file(write):
    by_model = named(load_suite(write()).methods[1].hparams)
    assert (by_model["llama2-7b"].values["layer"], by_model["gpt-j-6b"].values["layer"]) == (27, 21)


def test_the_label_of_a_variant_is_the_method_and_variant_name(write):
    suite = load_suite(write(base=BASE.replace("none", "{name: ft-l, variant: unconstrained}")))
    assert [entry.label for entry in suite.methods] == ["ft-l.unconstrained", "ft-l"]
    assert named(suite.methods[0].hparams)["llama2-7b"].values["norm_constraint"] is None


def test_filters_keep_the_order_of_the_suite(write):
    suite = load_suite(write(), only=["method=ft-l,none", "model=gpt-j-6b"])
    assert [entry.name for entry in suite.methods] == ["none", "ft-l"]
    assert [entry.name for entry in suite.models] == ["gpt-j-6b"]


def test_a_method_is_filtered_by_label_or_by_name(write):
    path = write(base=BASE.replace("none", "{name: ft-l, label: free, variant: unconstrained}"))
    assert [entry.label for entry in load_suite(path, only=["method=free"]).methods] == ["free"]
    assert [entry.label for entry in load_suite(path, only=["method=ft-l"]).methods] == ["free", "ft-l"]


def test_the_data_folder_of_an_entry_takes_precedence(write, tmp_path, monkeypatch):
    for name in ("own", "given", "environment"):
        (tmp_path / name).mkdir()
    path = write()
    assert load_suite(path).datasets[0].source == ""
    monkeypatch.setenv("HARNESS_DATA", "environment")
    assert load_suite(path).datasets[0].source == "environment"
    assert load_suite(path, data="given").datasets[0].source == "given"
    own = write(base=BASE.replace("edits: 100", "path: own"))
    assert load_suite(own, data="given").datasets[0].source == "own"


def test_a_dataset_may_treat_contradictory_records_otherwise_than_its_suite(write):
    base = BASE.replace("[{name: zsre, edits: 100}]", "[zsre, {name: counterfact, conflicts: keep}]")

    assert [entry.conflicts for entry in load_suite(write()).datasets] == ["keep"]
    assert [entry.conflicts for entry in load_suite(write("conflicts: drop\n", base=base)).datasets] == ["drop", "keep"]


def test_a_suite_inherits_missing_keys_from_its_base(write):
    write("seeds: [1, 2]\n", name="base.yaml")
    suite = load_suite(write("extends: base.yaml\nname: over\nmethods: [none]\n", base=""))
    assert (suite.name, suite.seeds, len(suite.methods), len(suite.models)) == ("over", (1, 2), 1, 2)


def test_an_installed_suite_can_be_extended_from_anywhere(write):
    suite = load_suite(write("extends: main_table.yaml\nname: mine\nmethods: [none]\n", base=""))
    assert (suite.name, len(suite.methods), suite.models[0].name) == ("mine", 1, "llama2-7b")
    write("name: main_table\nmodels: [gpt-j-6b]\nmethods: [none]\ndatasets: [zsre]\n", base="", name="main_table.yaml")
    nearer = load_suite(write("extends: main_table.yaml\nname: mine\n", base=""))
    assert [model.name for model in nearer.models] == ["gpt-j-6b"]


def test_a_sequential_schedule_is_read(write):
    suite = load_suite(write("schedule: {sequential: {block: 20, score_at: [10, 50, 100]}}\n"))
    assert suite.schedule == Schedule("sequential", 20, (10, 50, 100))
    assert load_suite(write()).schedule == Schedule()


def test_the_retention_table_needs_a_sequential_schedule(write):
    with pytest.raises(UserError, match=r"suite\.yaml:5: table 'retention' needs `schedule"):
        load_suite(write("tables: [retention]\n"))
    assert load_suite(write("tables: [retention]\nschedule: {sequential: {block: 2, score_at: [4]}}\n")).tables


def test_a_suite_can_use_a_protocol_a_table_and_a_figure_registered_elsewhere(write):
    path = write("protocols: [sideways]\ntables: [sideways]\nfigures: [sideways]\n")
    with pytest.raises(UserError, match="unknown protocol 'sideways'"):
        load_suite(path)
    registry.protocols.add("sideways", registry.protocols.get("generation"), __name__)
    registry.register_table("sideways")(lambda frame: ([], None))
    with pytest.raises(UserError, match="unknown figure 'sideways'"):
        load_suite(path)
    registry.register_figure("sideways")(lambda frame: None)
    try:
        suite = load_suite(path)
        assert suite.protocols == suite.tables == suite.figures == ("sideways",)
    finally:
        registry.protocols.discard("sideways")
        registry.tables.discard("sideways")
        registry.figures.discard("sideways")


def test_a_suite_records_where_its_launch_profile_was_chosen(write):
    suite = load_suite(write("launch: a100\n"))
    assert (suite.launch, suite.launch_at) == ("a100", "suite.yaml:5")
    at_scale = load_suite(write("launch: a100\n"), scale="mini")
    assert at_scale.launch == "local"
    assert at_scale.launch_at.split(":")[0].endswith("mini.yaml")


def test_the_json_schema_accepts_names_and_forbids_unknown_keys():
    schema = suite_json_schema()
    assert schema["additionalProperties"] is False
    models = schema["properties"]["models"]["items"]
    assert {"type": "string"} in schema["$defs"][models["$ref"].rsplit("/", 1)[-1]]["anyOf"]


def test_the_json_schema_offers_the_names_of_the_registries():
    schema = suite_json_schema()
    properties, method = schema["properties"], schema["$defs"]["MethodForm"]["anyOf"]
    assert properties["protocols"]["items"]["enum"] == registry.protocols.names()
    assert properties["tables"]["items"]["enum"] == registry.tables.names()
    assert properties["backend"]["enum"] == ["auto", "native", *registry.backends.names()]
    assert method[0] == {"type": "string", "enum": registry.methods.names()}
    assert method[1]["properties"]["name"]["enum"] == registry.methods.names()


@pytest.mark.parametrize("heavy", ["torch", "transformers", "mlflow", "pandas", "numpy"])
def test_loading_a_suite_imports_nothing_heavy(heavy):
    code = (
        "import sys; from harness.suite import load_suite; load_suite('suites/main_table.yaml', scale='mini'); "
        f"sys.exit({heavy!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_method_without_settings_for_a_model_says_so_and_other_methods_have_theirs(write, monkeypatch):
    monkeypatch.setattr("harness.suite.hparams.find_file", lambda folders, model, architecture: None)
    none, ft_l = load_suite(write()).methods
    assert (
        "has no value of 'layer' for llama2-7b: write hparams/ft-l/llama2-7b.yaml" in named(ft_l.problems)["llama2-7b"]
    )
    assert ft_l.hparams == {}
    assert named(none.hparams).keys() == {"llama2-7b", "gpt-j-6b"}


def test_a_variant_that_only_other_models_have_is_no_typo(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "hparams" / "ft-l"
    own.mkdir(parents=True)
    (own / "llama2-7b.yaml").write_text(
        "extends: default.yaml\nvariants: {slow: {lr: {value: 1.0e-5, source: here}}}\n"
    )
    ft_l = load_suite(write(base=BASE.replace("ft-l", "{name: ft-l, variant: slow}"))).methods[1]
    assert named(ft_l.hparams)["llama2-7b"].values["lr"] == 1e-5
    assert "has no variant 'slow'" in named(ft_l.problems)["gpt-j-6b"]
    with pytest.raises(UserError, match=r"has no variant 'slwo' \(did you mean 'slow'\?\)"):
        load_suite(write(base=BASE.replace("ft-l", "{name: ft-l, variant: slwo}")))


def test_a_folder_that_is_not_on_this_machine_is_said_by_its_entry(write):
    base = BASE.replace("llama2-7b", "{name: llama2-7b, path: nowhere}").replace("edits: 100", "edits: 100, path: gone")
    suite = load_suite(write(base=base))
    assert suite.models[0].problem.endswith("suite.yaml:2: models[0].path: no such folder: nowhere")
    assert not suite.models[1].problem
    assert suite.datasets[0].problem.endswith("suite.yaml:4: datasets[0].path: no such folder: gone")


def test_a_path_that_is_a_file_is_refused_with_its_folder(write, tmp_path):
    for name in ("config.json", "facts.jsonl"):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / name).touch()
    base = BASE.replace("llama2-7b", "{name: llama2-7b, path: mine/config.json}")
    suite = load_suite(write(base=base.replace("edits: 100", "edits: 100, path: mine/facts.jsonl")))

    refusal = "path: a file where a folder is expected: mine/"
    assert suite.models[0].problem.endswith(f"models[0].{refusal}config.json → path: mine")
    assert suite.datasets[0].problem.endswith(f"datasets[0].{refusal}facts.jsonl → path: mine, file: facts.jsonl")


def test_a_model_may_name_its_revision(write):
    path = write(
        base=BASE.replace("llama2-7b", "{name: llama2-7b, revision: 01c7f73d771dfac7d292323805ebc428287df4f9}")
    )
    first, second = load_suite(path).models
    assert (first.revision, second.revision) == ("01c7f73d771dfac7d292323805ebc428287df4f9", "")
