"""`harness export`, `ask`, `chat` and `serve` as commands, and their refusals."""

import io
import json
import shutil

import pytest

from harness.cli import main
from harness.models.weights import FILE
from harness.plan.recall import recalled
from harness.store.store import Store
from tests.helpers.in_process import PlanBench
from tests.helpers.small_suites import write_suite
from tests.live.conftest import FT_L

PROMPT = "The mother tongue of Danielle Darrieux is"


@pytest.fixture
def store(doors):
    return ["--store", str(doors[0]), "--device", "cpu"]


def test_export_says_what_it_checked_and_what_it_wrote(doors, store, tmp_path, capsys):
    for label, kind in (("ft-l", "transformers"), ("onceedit", "harness.load_edited")):
        assert main(["export", doors[1][label].folder, "--to", str(tmp_path / label), *store]) == 0
        said = capsys.readouterr().out
        assert "8 of 8 stored answers to the edits are the same" in said
        assert f"for {kind}" in said


def test_ask_shows_both_answers_and_the_routing(doors, store, capsys):
    assert main(["ask", doors[1]["grace"].folder, PROMPT, "--max-tokens", "3", *store]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["unedited", "edited", "routing"]
    assert main(["ask", doors[1]["ft-l"].folder, PROMPT, "--max-tokens", "3", *store]) == 0
    assert "routing" not in capsys.readouterr().out


def test_chat_keeps_a_conversation_until_an_empty_line(doors, store, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPT}\nAnd?\n\n{PROMPT}\n"))
    assert main(["chat", doors[1]["ft-l"].folder, "--max-tokens", "3", *store]) == 0
    lines = capsys.readouterr().out.splitlines()
    answers = [line for line in lines if line.startswith("edited")]
    assert len(answers) == 3
    assert answers[0] == answers[2], "a new conversation knows nothing of the first"
    assert "no template" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["ask", "nothing", PROMPT], "'nothing' matches 0 cells"),
        (["ask", "CELL", ""], "the prompt is empty"),
        (["ask", "CELL", PROMPT, "--template", "chat"], "has no chat template"),
        (["export", "CELL", "--to", "TAKEN"], "already exists"),
    ],
)
def test_bad_input_is_one_line(doors, store, tmp_path, capsys, arguments, complaint):
    (tmp_path / "file").write_text("")
    named = {"CELL": doors[1]["ft-l"].folder, "TAKEN": str(tmp_path)}
    assert main([*(named.get(word, word) for word in arguments), *store]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("harness:")]
    assert complaint in line


@pytest.mark.parametrize("place", [".", "file", "full"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_edited(
    doors, store, tmp_path, capsys, monkeypatch, place
):
    (tmp_path / "full").mkdir()
    for file in ("file", "full/file"):
        (tmp_path / file).write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("harness.live.opening.open_cell", lambda *_: pytest.fail("edited"))
    assert main(["export", doors[1]["ft-l"].folder, "--to", place, *store]) == 2
    assert f"{place}: already exists" in capsys.readouterr().err


def test_kept_weights_are_used_as_they_are(doors, tmp_path, capsys):
    root, cells = doors
    llama = {"name": "tiny/llama", "weights": "pretrained", "path": str(root.parent / "llama")}
    suite = write_suite(
        root.parent / "kept.yaml",
        name="kept",
        methods=[FT_L],
        models=[llama],
        protocols=["generation"],
        keep_weights=True,
    )
    bench = PlanBench(suite, root)
    cell = bench.plan.runnable[0]
    assert bench.run(cell).reason is None
    assert (bench.folder(cell).path / FILE).is_file()
    assert main(["export", cell.folder, "--to", str(tmp_path / "kept"), "--store", str(root)]) == 0
    assert main(["export", cells["ft-l"].folder, "--to", str(tmp_path / "again"), "--store", str(root)]) == 0
    kept, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("kept", "again"))
    assert kept == again


def test_a_cell_whose_records_or_code_have_changed_is_refused(doors, tmp_path, capsys):
    root, cells = doors
    folder = cells["ft-l"].folder
    copy = tmp_path / "store" / "cells" / folder
    shutil.copytree(root / "cells" / folder, copy)
    assert recalled(Store(tmp_path / "store").cell(folder)).cell_id == cells["ft-l"].cell_id

    def refused(change, file, complaint):
        content = json.loads((copy / file).read_text())
        (copy / file).write_text(json.dumps(change(content)))
        assert main(["ask", folder, PROMPT, "--store", str(tmp_path / "store")]) == 2
        assert complaint in capsys.readouterr().err
        shutil.copy(root / "cells" / folder / file, copy / file)

    refused(lambda found: {**found, "seed": 7}, "cell.json", "changed since it was run")
    earlier = {"cell_id": "0" * 64}  # as it follows from another version of the method
    refused(
        lambda found: {**found, **earlier, "method": {**found["method"], "version": 0}},
        "cell.json",
        "its method changed since it was run, so its edits cannot be made again; a new run makes a cell of its own "
        "→ run its suite again",
    )
    refused(
        lambda found: {key: value for key, value in found.items() if key != "references"},
        "provenance.json",
        "references",
    )
    refused(lambda found: {**found, "references": {"model": {}}}, "provenance.json", "damaged references")
    (copy / "DONE").unlink()
    assert main(["ask", folder, PROMPT, "--store", str(tmp_path / "store")]) == 2
    assert "not finished" in capsys.readouterr().err
