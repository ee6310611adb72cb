"""Command lines: the recorded command is the one that was typed, however the program was started."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.commands import COMMAND, list_around, this_command
from tests.helpers.commands import ROOT, environment

SAYS = "from harness.commands import this_command\n\n\ndef say():\n    print(this_command())\n"
STARTS = """
import multiprocessing, sys
from tool.says import say
if __name__ == "__main__":
    if "--spawn" in sys.argv:
        child = multiprocessing.get_context("spawn").Process(target=say)
        child.start()
        child.join()
    else:
        say()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A program that can be started as a package, as a submodule or as a script."""
    home = tmp_path_factory.mktemp("programs")
    (home / "tool").mkdir()
    (home / "tool" / "says.py").write_text(SAYS)
    for path in ("tool/__main__.py", "tool/part.py", "script"):
        (home / path).write_text(STARTS)
    return home


@pytest.mark.parametrize("how", ["--plain", "--spawn"])
@pytest.mark.parametrize(
    ("started", "expected"),
    [(["-m", "tool"], "python -m tool"), (["-m", "tool.part"], "python -m tool.part"), (["script"], "script")],
    ids=["package", "module", "script"],
)
def test_the_command_is_what_was_typed(folder, started, expected, how):
    done = subprocess.run(
        [sys.executable, *started, how, "two words"],
        cwd=folder,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == f"{expected} {how} 'two words'"


def test_a_process_that_a_scheduler_has_started_names_the_command_of_its_launch(monkeypatch):
    monkeypatch.setenv(COMMAND, "python -m harness run suite.yaml")
    assert this_command() == "python -m harness run suite.yaml"


def test_credentials_in_a_command_are_not_kept(monkeypatch):
    address = "http://me:hunter2@host:5000"
    monkeypatch.setattr(sys, "argv", ["harness", "run", "suite", "--note", address])
    assert this_command().endswith("--note http://***@host:5000")
    monkeypatch.setenv(COMMAND, f"harness run suite --note {address}")
    assert this_command() == "harness run suite --note http://***@host:5000"


def test_the_folder_around_a_missing_file_is_listed_unless_that_says_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()

    assert list_around(Path("a b", "gone", "x.json")) == "ls 'a b'"
    assert list_around(Path("gone", "x.json")) is None
    assert list_around(Path("/no such folder", "x.json")) is None
