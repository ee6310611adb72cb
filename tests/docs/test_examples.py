"""The examples of docs/add-a-*.md, taken from the pages as they are: each registers, and runs through the public commands."""

import json
import re
import subprocess
import sys

import pandas as pd
import pytest
from rich.console import Console

from harness import registry
from harness.commands import PLUGINS
from harness.data.load import load, resolve
from harness.data.sources import find_files
from harness.errors import UserError
from harness.models.edited import WeightEditedModel
from harness.models.weights import weight_hash
from harness.run.context import RunContext
from harness.run.progress import Display
from harness.store.artifacts import ArtifactCache
from harness.store.store import Store
from harness.suite import load_suite
from harness.suite.hparams import resolve as resolve_hparams
from harness.tokens import joint_query
from reports import write_report
from tests.docs.pages import files, write
from tests.helpers.commands import ROOT, environment, harness
from tests.helpers.fake_store import FakeStore
from tests.helpers.small_suites import write_home, write_suite
from tests.helpers.tiny_models import ARCHITECTURES, tiny_model

EXAMPLES = {
    "add-a-method.md": "last_layer.py",
    "add-a-dataset.md": "coaches.py",
    "add-a-table.md": "exact_match.py",
}


@pytest.fixture(params=EXAMPLES)
def page(request):
    return request.param


def load_plugin(page, folder, monkeypatch):
    """Write the files of a page to a folder and load its plug-in, as `--plugin FILE.py` does."""
    write(page, folder)
    monkeypatch.setenv(PLUGINS, str(folder / EXAMPLES[page]))
    registry.load_plugins()


def forget(module):
    sys.modules.pop(module, None)
    registry._import_plugin.cache_clear()


def command(folder, *arguments, plugin=None):
    """`python -m harness` from a reader's folder, with a plug-in of theirs."""
    names = {PLUGINS: plugin} if plugin else {}
    return subprocess.run(
        [sys.executable, "-m", "harness", *map(str, arguments)],
        cwd=folder,
        env=environment() | {"PYTHONPATH": str(ROOT)} | names,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def output(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_example_is_in_the_style_of_the_project(page, tmp_path):
    write(page, tmp_path)
    for verb in (["check"], ["format", "--diff"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *verb, "--config", ROOT / "pyproject.toml", tmp_path / EXAMPLES[page]],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_planning_with_an_example_imports_no_torch(page, tmp_path):
    write(page, tmp_path)
    code = f"import sys, {EXAMPLES[page].removesuffix('.py')}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert output(done).strip() == "False"


# ── The method


@pytest.fixture
def method(tmp_path, monkeypatch):
    """The class of the page, as the registry returns it."""
    load_plugin("add-a-method.md", tmp_path, monkeypatch)
    yield registry.find_method("last-layer")
    registry.methods.discard("last-layer")
    forget("last_layer")


@pytest.fixture
def editor(method):
    """With more steps than by default: random weights start further away than a trained model."""
    return method(method.Hparams(steps=150))


@pytest.fixture
def context(tmp_path):
    return RunContext(ArtifactCache(Store(tmp_path / "store")), "cpu", Display(Console(quiet=True)))


@pytest.fixture(scope="module")
def requests():
    return [record.request() for record in load(resolve("counterfact", "synthetic", 4)).edits]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_method_makes_a_model_say_its_targets_and_reverts_it_bit_for_bit(architecture, editor, context, requests):
    model = tiny_model(architecture)
    queries = [joint_query(model.tokenizer, request.prompt, request.target_new) for request in requests]
    wanted = [list(query.target_ids) for query in queries]
    before, unedited = weight_hash(model.model), WeightEditedModel(model).teacher_forced(queries)
    assert unedited != wanted

    edited = editor.edit(model, requests, {}, context)
    assert edited.teacher_forced(queries) == wanted
    assert weight_hash(model.model) != before
    assert context.clock.seconds["edit"] > 0

    edited.revert()
    assert weight_hash(model.model) == before
    assert WeightEditedModel(model).teacher_forced(queries) == unedited


def test_the_method_gives_the_same_bits_twice(editor, context, requests):
    hashes = []
    for _ in range(2):
        model = tiny_model("llama")
        editor.edit(model, requests, {}, context)
        hashes.append(weight_hash(model.model))
    assert hashes[0] == hashes[1]


def test_hyper_parameters_next_to_the_plug_in_are_read_with_their_sources(method):
    resolved = resolve_hparams("last-layer", "tiny/llama", {"lr": 0.5})
    assert resolved.values == {"layer": -1, "lr": 0.5, "steps": 60}
    assert resolved.sources["steps"] == "example from the documentation; not tuned"
    assert resolved.sources["lr"] == "suite"


def test_the_method_is_listed_and_its_suite_planned(tmp_path):
    write("add-a-method.md", tmp_path)
    plugin = tmp_path / "last_layer.py"
    assert re.search(
        r"last-layer +Last layer +weights", output(command(tmp_path, "list", "methods", plugin=str(plugin)))
    )
    plan = output(command(tmp_path, "plan", "try_last_layer.yaml", "--scale", "mini", "--plugin", "last_layer.py"))
    assert "3 cells, 3 can run here" in plan
    assert "gentle" in plan


def test_the_suite_of_the_method_is_refused_without_the_plug_in(tmp_path):
    write("add-a-method.md", tmp_path)
    with pytest.raises(UserError, match="unknown method 'last-layer'"):
        load_suite(tmp_path / "try_last_layer.yaml", scale="mini")


@pytest.mark.slow
def test_a_run_scores_the_method_above_the_unedited_model(tmp_path):
    write("add-a-method.md", tmp_path)
    write_home(tmp_path)
    suite = write_suite(tmp_path / "small.yaml", methods=["none", {"name": "last-layer", "steps": 80}])
    output(harness("run", suite, "--store", "store", "--no-report", "--plugin", "last_layer.py", folder=tmp_path))
    reliability = {
        folder.name.rpartition("-counterfact")[0]: json.loads((folder / "metrics.json").read_text())["teacher_forced"][
            "reliability"
        ]["score"]
        for folder in (tmp_path / "store" / "cells").iterdir()
    }
    for model in ("tiny_llama", "tiny_gptj"):
        assert reliability[f"last-layer-{model}"] > reliability[f"none-{model}"] + 0.5


# ── Where plug-ins are found


def test_a_plug_in_can_be_a_module_on_the_python_path(tmp_path):
    write("add-a-method.md", tmp_path)
    assert "last-layer" in output(command(tmp_path, "list", "methods", plugin="last_layer"))


@pytest.mark.parametrize("names", ["last_layer:nothere", "last_layer.nothere", "nothere.at_all"])
def test_a_plug_in_module_that_does_not_exist_is_one_line(names, tmp_path):
    write("add-a-method.md", tmp_path)
    done = command(tmp_path, "list", "methods", plugin=names)
    assert done.returncode == 2
    missing = names.rpartition(":")[2]
    assert re.fullmatch(
        rf"harness: HARNESS_PLUGINS: .*no module '{re.escape(missing)}' → .*PYTHONPATH.*--plugin FILE\.py\n",
        done.stderr,
    )


def test_a_plug_in_that_imports_a_missing_module_is_one_line(tmp_path):
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    done = command(tmp_path, "list", "methods", plugin="broken")
    assert done.returncode == 2
    assert re.fullmatch(
        r"harness: HARNESS_PLUGINS: \S+broken\.py:1: ModuleNotFoundError: No module named 'no_such_package'\n",
        done.stderr,
    )


# ── The dataset


@pytest.fixture
def coaches(tmp_path, monkeypatch):
    """The folder with the records of the page, its dataset and format registered."""
    load_plugin("add-a-dataset.md", tmp_path, monkeypatch)
    yield tmp_path / "data"
    registry.formats.discard("coaches")
    registry.datasets.discard("coaches")
    forget("coaches")


def test_the_format_turns_a_json_file_into_records(coaches):
    data = load(resolve("coaches", str(coaches), 2, split="all", train=2, unrelated=1))
    first = data.edits[0]
    assert first.request().prompt == "The coach of Northbridge FC is"
    assert (first.subject, first.ground_truth, first.target_new) == ("Northbridge FC", "Ada Lind", "Ben Okoro")
    assert first.rephrases == ("Northbridge FC is coached by",)
    assert [(probe.prompt, probe.answer) for probe in first.locality] == [
        ("The coach of Southbridge FC is", "Cleo Marsh")
    ]
    assert (len(data.edits), len(data.train), len(data.unrelated)) == (2, 2, 1)


def test_a_broken_record_of_the_format_is_left_out_and_named_with_its_field(coaches):
    file = coaches / "coaches.json"
    rows = json.loads(file.read_text())
    del rows[3]["coach"]
    file.write_text(json.dumps(rows))
    edited = find_files("coaches", str(coaches)).edited
    assert (edited.rows, len(edited.records)) == (6, 5)
    assert "record 4: field 'coach' is missing" in edited.left_out()


def test_the_dataset_is_listed_shown_and_planned(tmp_path):
    write("add-a-dataset.md", tmp_path)
    plugin = str(tmp_path / "coaches.py")
    assert re.search(
        r"coaches +edits +6 +6 .*Coaches \(JSON\)",
        output(command(tmp_path, "data", "list", "--data", "data", plugin=plugin)),
    )
    assert "Northbridge FC" in output(command(tmp_path, "data", "show", "coaches", "--data", "data", plugin=plugin))
    plan = output(
        command(tmp_path, "plan", "try_coaches.yaml", "--scale", "mini", "--data", "data", "--plugin", "coaches.py")
    )
    assert "2 cells, 2 can run here" in plan


@pytest.mark.slow
def test_a_run_edits_the_records_of_the_dataset(tmp_path):
    write("add-a-dataset.md", tmp_path)
    write_home(tmp_path)
    suite = write_suite(
        tmp_path / "small.yaml", datasets=[{"name": "coaches", "path": str(tmp_path / "data"), "edits": 2, "train": 2}]
    )
    output(harness("run", suite, "--store", "store", "--no-report", "--plugin", "coaches.py", folder=tmp_path))
    for folder in (tmp_path / "store" / "cells").iterdir():
        rows = pd.read_parquet(folder / "records.parquet")
        assert {"The coach of Northbridge FC is", "Northbridge FC is coached by"} <= set(rows["prompt"])


# ── The table


@pytest.fixture
def table(tmp_path, monkeypatch):
    """The builder of the page, registered."""
    load_plugin("add-a-table.md", tmp_path, monkeypatch)
    yield registry.tables.get("exact")
    registry.tables.discard("exact")
    forget("exact_match")


def test_the_table_is_written_as_latex_and_csv_from_a_store(table, tmp_path):
    store = tmp_path / "results"
    FakeStore(store).write_suite(tables=["exact"])
    written = write_report(store, "main_table", "mini", Console(quiet=True))
    tex, csv = (store / "reports" / "main_table.mini" / f"exact_table.{suffix}" for suffix in ("tex", "csv"))
    assert {tex, csv} <= set(written)
    assert "Exact match of edits" in tex.read_text()

    numbers = pd.read_csv(csv)
    assert len(numbers) == 3 * 3 * 2  # methods × models × datasets
    for number in numbers.to_dict("records"):
        metrics = json.loads((store / "cells" / number["cell"] / "metrics.json").read_text())
        assert number["rel_exact"] == pytest.approx(metrics["generation"]["reliability"]["exact"])


def test_a_suite_may_ask_for_the_table_by_its_name(table, tmp_path):
    suite = write_suite(
        tmp_path / "small.yaml",
        datasets=[{"name": "counterfact", "edits": 8}],
        tables=["main", "exact"],
        models=["tiny/llama"],
    )
    assert load_suite(suite).tables == ("main", "exact")


def test_the_table_is_listed(tmp_path):
    write("add-a-table.md", tmp_path)
    listed = output(command(tmp_path, "list", "tables", plugin=str(tmp_path / "exact_match.py")))
    assert re.search(r"^exact\b", listed, re.MULTILINE)


# ── The pages themselves


def test_pages_show_the_files_they_name():
    assert set(files("add-a-method.md")) == {"last_layer.py", "try_last_layer.yaml", "hparams/last-layer/default.yaml"}
    assert set(files("add-a-dataset.md")) == {"data/coaches.json", "coaches.py", "try_coaches.yaml"}
    assert set(files("add-a-table.md")) == {"exact_match.py"}
