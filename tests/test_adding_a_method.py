"""The method of docs/adding-a-method.md, taken from the page as it stands: it registers, edits, reverts and runs."""

import importlib
import json
import re
import shutil
import subprocess
import sys

import pytest
from rich.console import Console

import methods
from harness import registry
from harness.data.load import load, resolve
from harness.errors import UserError
from harness.models.edited import WeightEditedModel
from harness.models.weights import weight_hash
from harness.run.context import RunContext
from harness.run.progress import ProgressBars
from harness.store.artifacts import ArtifactCache
from harness.store.store import Store
from harness.suite import load_suite
from harness.suite.hparams import resolve as resolve_hparams
from harness.tokens import joint_query
from tests.helpers.commands import ROOT, environment
from tests.helpers.small_suites import write_home, write_suite
from tests.helpers.tiny_models import ARCHITECTURES, tiny_model

PAGE = (ROOT / "docs" / "adding-a-method.md").read_text()
MODULE, HPARAMS, SUITE = re.findall(r"^```(?:python|yaml)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def install(folder):
    """Put module and values where the page says, in some `methods/`."""
    (folder / "last_layer.py").write_text(MODULE)
    place = folder / "hparams" / "last-layer"
    place.mkdir(parents=True)
    (place / "default.yaml").write_text(HPARAMS)


@pytest.fixture
def method(tmp_path, monkeypatch):
    """The class, as the registry hands it out."""
    install(tmp_path)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "_METHODS", dict(registry.methods.all()))
    importlib.invalidate_caches()
    importlib.import_module("methods.last_layer")
    yield registry.find_method("last-layer")
    del sys.modules["methods.last_layer"], methods.last_layer


@pytest.fixture
def editor(method, tmp_path):
    """With the values of the page, but more steps: random weights start further away than a trained model."""
    resolved = resolve_hparams("last-layer", "tiny/llama", {"steps": 150}, folder=tmp_path / "hparams")
    return method(method.Hparams.model_validate(resolved.values))


@pytest.fixture
def context(tmp_path):
    return RunContext(ArtifactCache(Store(tmp_path / "store")), "cpu", ProgressBars(Console(quiet=True)))


@pytest.fixture(scope="module")
def requests():
    return [record.request() for record in load(resolve("counterfact", "synthetic", 4)).edits]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_example_makes_a_model_say_its_targets_and_gives_it_back_bit_for_bit(
    architecture, editor, context, requests
):
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


def test_the_example_gives_the_same_bits_twice(editor, context, requests):
    hashes = []
    for _ in range(2):
        model = tiny_model("llama")
        editor.edit(model, requests, {}, context)
        hashes.append(weight_hash(model.model))
    assert hashes[0] == hashes[1]


@pytest.fixture
def checkout(tmp_path):
    """A checkout in which somebody followed the page."""
    root = tmp_path / "checkout"
    shutil.copytree(ROOT / "methods", root / "methods", ignore=shutil.ignore_patterns("__pycache__"))
    install(root / "methods")
    shutil.copytree(ROOT / "suites", root / "suites")
    (root / "suites" / "try_last_layer.yaml").write_text(SUITE)
    for room in ("harness", "reports", "slurm"):
        (root / room).symlink_to(ROOT / room)
    return root


def python(checkout, *arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=checkout,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_module_is_listed_and_planned_without_torch(checkout):
    assert re.search(r"last-layer +Last layer, weights", python(checkout, "-m", "harness", "list", "methods"))
    plan = python(checkout, "-m", "harness", "plan", "suites/try_last_layer.yaml", "--scale", "mini")
    assert "3 cells, 3 can run here" in plan
    assert "gentle" in plan
    assert python(checkout, "-c", "import sys, methods.last_layer; print('torch' in sys.modules)").strip() == "False"


def from_elsewhere(names, folder):
    """`harness list methods` where the environment names modules in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "harness", "list", "methods"],
        cwd=ROOT,
        env=environment() | {"HARNESS_METHODS": names, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_module_that_lies_elsewhere_is_listed_when_the_environment_names_it(tmp_path):
    (tmp_path / "mymethods.py").write_text(MODULE)
    done = from_elsewhere("mymethods", tmp_path)
    assert re.search(r"last-layer +Last layer, weights", done.stdout)


@pytest.mark.parametrize("names", ["mymethods:nothere", "mymethods.nothere", "nothere.at_all"])
def test_a_module_that_is_not_there_is_one_line(names, tmp_path):
    (tmp_path / "mymethods.py").write_text(MODULE)
    done = from_elsewhere(names, tmp_path)
    assert done.returncode == 2
    missing = names.rpartition(":")[2]
    assert done.stderr == (
        f"harness: HARNESS_METHODS: there is no module '{missing}' → put its folder into PYTHONPATH\n"
    )


def test_a_module_that_imports_what_is_not_there_keeps_its_traceback(tmp_path):
    (tmp_path / "mymethods.py").write_text("import no_such_package\n")
    done = from_elsewhere("mymethods", tmp_path)
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'no_such_package'" in done.stderr


def test_the_example_is_in_the_style_of_the_project(tmp_path):
    install(tmp_path)
    for verb in ("check", "format --diff"):
        python(ROOT, "-m", "ruff", *verb.split(), "--config", ROOT / "pyproject.toml", tmp_path / "last_layer.py")


def test_the_suite_of_the_page_is_refused_without_the_method(tmp_path):
    suite = tmp_path / "try_last_layer.yaml"
    suite.write_text(SUITE)
    with pytest.raises(UserError, match="unknown method 'last-layer'"):
        load_suite(suite, scale="mini")


@pytest.mark.slow
def test_a_whole_run_scores_the_example_above_the_unedited_model(checkout, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    write_home(home)
    suite = write_suite(home / "small.yaml", methods=["none", {"name": "last-layer", "steps": 80}])
    python(checkout, "-m", "harness", "run", suite, "--store", tmp_path / "store", "--no-report")
    reliability = {
        folder.name.rpartition("-counterfact")[0]: json.loads((folder / "metrics.json").read_text())["teacher_forced"][
            "reliability"
        ]["score"]
        for folder in (tmp_path / "store" / "cells").iterdir()
    }
    for model in ("tiny_llama", "tiny_gptj"):
        assert reliability[f"last-layer-{model}"] > reliability[f"none-{model}"] + 0.5
