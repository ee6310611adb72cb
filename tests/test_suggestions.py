"""Every command that an error suggests is complete, and gets the user further when it is pasted."""

import ast
import json
import re
import shlex

import pytest

from harness.commands import COMMAND, harness_command, rerun, run_of, same_command
from tests.helpers.commands import ROOT, harness_here
from tests.helpers.fake_store import FakeStore

MAIN = "suites/main_table.yaml"
MINI = ("--scale", "mini")
SUGGESTED = re.compile(r"python -m harness (?!\.)(.*?)(?=, or\b|; | &&|\)|$)")
ONLY_WHEN_RUN = {"--force", "--no-report", "--detach", "--failed"}


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    """Pretend that this machine has no SLURM."""
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """An empty place, a store with a finished suite and a failed cell, and a file."""
    folder = tmp_path_factory.mktemp("stores")
    fake = FakeStore(folder / "filled").write_suite(models=["tiny/llama"], data=["zsre"])
    fake.write_failure("ft-l", "tiny/llama", "counterfact", "it rained")
    (folder / "file").write_text("")
    return folder


def ask(monkeypatch, *words):
    """Run a command in this process, as if it had been typed."""
    with monkeypatch.context() as patch:
        patch.setenv(COMMAND, shlex.join(["python", "-m", "harness", *map(str, words)]))
        return harness_here(*words)


def harmless(words):
    """The command, or one that checks its arguments without training a model or downloading a file."""
    if words[0] in ("run", "retry"):
        if words[-2:] == ["--data", "data"]:  # what the command before it would have downloaded
            words = words[:-2]
        return ["plan", *(word for word in words[1:] if word not in ONLY_WHEN_RUN)]
    return [*words, "--help"] if words[:2] == ["data", "fetch"] else words


def suggestions(done):
    """The commands in the one line on stderr of a command that failed."""
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    return [shlex.split(found[1]) for found in SUGGESTED.finditer(done.stderr.strip())]


EMPTY, FILLED, FILE = "empty", "filled", "file"
ERRORS = [
    (["run", "mian_table"], EMPTY),
    (["run", "suites/mian_table.yaml"], EMPTY),
    (["plan", MAIN, "--scale", "minni"], EMPTY),
    (["plan", MAIN, "--backend", "easyedti"], EMPTY),
    (["plan", MAIN, "--launch", "nowhere"], EMPTY),
    (["run", MAIN, "--only", "method=none"], EMPTY),
    (["run", MAIN, "--launch", "local", "--only", "method=none,ft-l"], EMPTY),
    (["run", MAIN, *MINI, "--only", "model=tiny/llama"], FILE),
    (["retry", MAIN, *MINI, "--only", "model=tiny/llama"], FILE),
    (["explain", "nothing"], EMPTY),
    (["explain", "ft-l-tinny_llama-counterfact"], FILLED),
    (["answers", "nothing"], EMPTY),
    (["answers", "ft-l-tiny_llama-zsre", "--axis", "nothing"], FILLED),
    (["answers", "ft-l-tiny_llama-counterfact"], FILLED),
    (["logs", "nothing"], EMPTY),
    (["logs", "ft-l-tinny_llama-counterfact"], FILLED),
    (["report", "nope"], EMPTY),
    (["report", "nope"], FILLED),
    (["report", "lambda", *MINI], EMPTY),
    (["report", "main_table"], FILLED),
    (["report", MAIN, *MINI], EMPTY),
    (["sync"], EMPTY),
    (["sync", "nope"], EMPTY),
    (["sync", "nope"], FILLED),
    (["sync", "suites/paper.yaml"], EMPTY),
    (["cancel", MAIN, *MINI], EMPTY),
]
WITHOUT_STORE = [
    ["list", "suites", "--plugin", "tests/helpers/nowhere.py"],
    ["data", "show", "nope"],
    ["data", "show", "counterfact", "--id", "nope"],
    ["data", "list", "--data", "nowhere"],
    ["data", "list", "--data", "docs"],
]


@pytest.mark.parametrize(
    ("words", "place"), ERRORS, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_the_suggested_command_succeeds_on_the_same_store(words, place, stores, monkeypatch):
    done = ask(monkeypatch, *words, "--store", stores / place)
    found = suggestions(done)
    assert found, done.stderr
    for command in found:
        assert command != [*words, "--store", str(stores / place)]
        if command[0] not in ("list", "schema", "data"):
            assert "--store" in command
        then = harness_here(*harmless(command))
        assert (then.returncode, then.stderr.partition("harness: ")[2]) == (0, "") or command[0] == "status", command


@pytest.mark.parametrize("words", WITHOUT_STORE, ids=" ".join)
def test_the_suggested_command_succeeds_without_a_store(words, monkeypatch):
    done = ask(monkeypatch, *words)
    assert done.returncode == 2
    for command in suggestions(done):
        assert harness_here(*harmless(command)).returncode == 0, command


def test_a_name_that_no_cell_has_suggests_to_list_them(stores, monkeypatch):
    done = ask(monkeypatch, "ask", "nothing", "a prompt", "--store", stores / FILLED)
    assert "'nothing' matches 0 cells" in done.stderr
    assert done.stderr.endswith(f" → ls {stores / FILLED / 'cells'}\n")


def test_a_name_that_several_cells_have_suggests_the_id_of_one(stores, monkeypatch):
    done = ask(monkeypatch, "ask", "ft-l", "a prompt", "--store", stores / FILLED)
    assert "'ft-l' matches 2 cells" in done.stderr
    assert re.search(rf"ask [0-9a-f]{{12}} 'a prompt' --store {re.escape(str(stores / FILLED))}\n$", done.stderr)


def test_a_misspelt_cell_is_replaced_in_the_command_with_all_its_arguments(stores, monkeypatch):
    cell = next((stores / FILLED / "cells").glob("ft-l-tiny_llama-zsre-*")).name
    done = ask(monkeypatch, "ask", f"{cell}x", "a prompt", "--store", stores / FILLED)
    assert done.stderr.endswith(f" → python -m harness ask {cell} 'a prompt' --store {stores / FILLED}\n")


def test_a_cell_can_be_named_by_its_path(stores):
    cell = next((stores / FILLED / "cells").glob("ft-l-tiny_llama-zsre-*"))
    assert f"files      {cell}" in harness_here("explain", f"{cell}/", "--store", stores / FILLED).stdout


def test_a_missing_results_folder_is_said(stores):
    done = harness_here("explain", "ft-l", "--store", stores / EMPTY)
    assert f"{stores / EMPTY}: no such results folder → " in done.stderr


def test_a_suggestion_repeats_all_options_that_decide_what_is_meant(home, stores, tmp_path, monkeypatch):
    plugin = tmp_path / "plug in.py"
    plugin.write_text("")
    records = home / "records"
    given = {"--only": "method=none", "--data": str(records), "--edits": "5", "--backend": "native"}
    words = [part for option in given.items() for part in option]
    done = ask(monkeypatch, "cancel", MAIN, *MINI, *words, "--plugin", plugin, "--store", stores / EMPTY)
    (command,) = suggestions(done)
    assert command[:2] == ["status", str(MAIN) if MAIN in done.stderr else command[1]]
    pairs = dict(zip(command[2::2], command[3::2], strict=True))
    assert pairs == {**given, "--scale": "mini", "--store": str(stores / EMPTY), "--plugin": str(plugin)}


def test_a_retry_of_a_store_without_failed_cells_says_how_to_run_the_rest_and_changes_nothing(
    home, tmp_path, monkeypatch
):
    done = ask(monkeypatch, "retry", home / "small.yaml", "--store", tmp_path / "store")
    assert done.returncode == 0
    assert "no cell of small.paper has failed" in done.stdout
    (command,) = (shlex.split(found[1]) for found in SUGGESTED.finditer(done.stdout.replace("\n", " ").strip()))
    assert command[0] == "run"
    assert "4 cells" in harness_here(*harmless(command)).stdout
    assert not list((tmp_path / "store").glob("suites/*"))


def test_a_report_of_a_run_in_which_no_cell_finished_suggests_to_run_and_not_to_retry(tmp_path):
    fake = FakeStore(tmp_path)
    fake.add_planned("none", "tiny/llama", "zsre")
    fake.write_manifest()
    file = tmp_path / "suites" / "main_table.mini.json"
    retried = {"command": "python -m harness retry main_table", "file": "installed:main_table.yaml"}
    file.write_text(json.dumps(json.loads(file.read_text()) | retried))
    done = harness_here("report", "main_table", *MINI, "--store", tmp_path)
    assert done.stderr.endswith(f"→ python -m harness run main_table --scale mini --store {tmp_path}\n")


def test_a_status_says_why_cells_cannot_run(tmp_path):
    out = harness_here("status", MAIN, "--store", tmp_path).stdout
    for reason in ("54 cells with zsre: no records of 'zsre': no folder given", "launch 'a100' needs SLURM"):
        assert f"cannot run: {reason}" in out


def test_a_damaged_cell_is_removed_and_its_own_suite_run_again(stores):
    folder = next((stores / FILLED / "cells").glob("ft-l-tiny_llama-zsre-*"))
    again = "python -m harness run suites/main_table.yaml --scale mini"
    assert rerun(folder / "cell.json") == f"rm -r {folder / 'cell.json'} && {again}"
    assert run_of(folder) == again


def test_the_same_command_has_only_the_named_options_changed(monkeypatch):
    monkeypatch.setenv(COMMAND, "python -m harness run a.yaml --store=x --scale mini --store y --only 'method=a b'")
    again = "python -m harness run a.yaml --scale mini --only 'method=a b' --store z"
    assert same_command(store="z") == again


def test_a_command_is_quoted_and_names_the_plug_ins(monkeypatch, tmp_path):
    monkeypatch.setenv("HARNESS_PLUGINS", "mine:/a b/mine.py")
    assert harness_command("run", "my suite.yaml", scale="", only=["a=b", "c=d"], force=True, store=tmp_path) == (
        f"python -m harness run 'my suite.yaml' --only a=b --only c=d --force --store {tmp_path} "
        "--plugin mine --plugin '/a b/mine.py'"
    )


def literals(tree):
    """Texts in code, apart from docstrings."""
    documented = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in documented:
            yield node.value


def constant_commands():
    """Words of all calls of `harness_command` in the code, as far as they are constants, and of commands in texts."""
    for package in ("harness", "methods", "reports", "slurm"):
        for file in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for text in literals(tree):
                for found in re.finditer(r"python -m harness ([a-z ]+)", text):
                    yield tuple(found[1].split())
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "harness_command":
                    words = [word.value for word in node.args if isinstance(word, ast.Constant)]
                    options = [f"--{each.arg.replace('_', '-')}" for each in node.keywords if each.arg]
                    if words:
                        yield (*words, *options)


@pytest.mark.parametrize("words", sorted(set(constant_commands())), ids=" ".join)
def test_every_command_named_in_the_code_exists_with_its_options(words):
    verbs = [word for word in words if not word.startswith("--")]
    shown = harness_here(*verbs[:1], *(verbs[1:2] if verbs[0] in ("data", "easyedit") else []), "--help")
    assert shown.returncode == 0
    for option in words[len(verbs) :]:
        assert option in shown.stdout
