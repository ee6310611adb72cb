"""One cell on one screen, and its answers one by one."""

import json
import shlex

import pytest

from harness.examine import explain
from harness.store.store import Folder
from tests.helpers.commands import harness_here
from tests.helpers.fake_store import FakeStore

SCREEN = 45


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    """A store with cells of three methods, one of them with many settings, and a failed one."""
    store = FakeStore(tmp_path_factory.mktemp("store"))
    store.write_suite(models=["tiny/llama"], data=["zsre"])
    many = {f"option_{number}": [number] * 40 for number in range(60)}
    store.write_cell("onceedit", "tiny/llama", "counterfact", hparams=many)
    store.write_failure("ft-l", "tiny/llama", "counterfact", "it rained")
    return store


def cell(fake, start):
    return next(path for path in sorted((fake.root / "cells").iterdir()) if path.name.startswith(start))


def ask(fake, verb, start, *options):
    done = harness_here(verb, cell(fake, start).name, *options, "--store", fake.root)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "start", ["onceedit-tiny_llama-counterfact", "ft-l-tiny_llama-zsre", "ft-l-tiny_llama-counterfact"]
)
def test_a_cell_is_explained_on_one_screen(fake, start):
    assert len(ask(fake, "explain", start).splitlines()) <= SCREEN


def test_the_explanation_has_scores_sources_cost_and_the_command_that_shows_the_answers(fake):
    metrics = json.loads((cell(fake, "ft-l-tiny_llama-zsre") / "metrics.json").read_text())
    out = ask(fake, "explain", "ft-l-tiny_llama-zsre")
    for words in (
        "layers = [3]                measured",
        f"reliability {metrics['generation']['reliability']['score']:.3f} (n 50)",
        "edit 4.0 s",
        "at most 1.0 GiB; with building its artifacts: 3.0 GiB",
        "0123456789ab",
        f"python -m harness answers {cell(fake, 'ft-l-tiny_llama-zsre').name} --store {fake.root}",
    ):
        assert words in out


def test_the_explanation_has_the_settings_that_the_identity_leaves_out(tmp_path):
    folder = FakeStore(tmp_path).write_cell("ft-l", "tiny/llama", "zsre")
    file = folder / "provenance.json"
    file.write_text(
        json.dumps(json.loads(file.read_text()) | {"references": {"hparams": {"layers": [3], "rounds": 1}}})
    )
    shown = "\n".join(explain(Folder(folder)))
    assert "layers = [3]" in shown
    assert "rounds = 1" in shown


def test_cells_of_one_name_are_told_apart_by_their_runs_and_found_by_their_ids(tmp_path):
    """As after a run on synthetic records and one with `--data`."""
    store = FakeStore(tmp_path)
    first = store.write_cell("ft-l", "tiny/llama", "zsre").name
    store.write_manifest()
    second = store.write_cell("ft-l", "tiny/llama", "zsre", seed=1).name
    runs = tmp_path / "suites"
    content = json.loads((runs / "main_table.mini.json").read_text())
    (runs / "main_table.mini.data.json").write_text(
        json.dumps(content | {"cells": [second], "combinations": {}, "variant": "data", "data": "data"})
    )
    refused = harness_here("explain", "ft-l-tiny_llama-zsre", "--store", tmp_path)
    assert refused.returncode == 2
    assert f"{first} (main_table.mini)" in refused.stderr
    assert f"{second} (main_table.mini.data)" in refused.stderr
    fix = shlex.split(refused.stderr.rpartition("enough: ")[2])
    assert harness_here(*fix[fix.index("explain") :]).returncode == 0


def test_the_explanation_as_json_leaves_nothing_out(fake):
    folder = cell(fake, "onceedit-tiny_llama-counterfact")
    shown = json.loads(ask(fake, "explain", folder.name, "--json"))
    assert shown == {
        name: json.loads((folder / f"{name}.json").read_text()) for name in ("cell", "metrics", "cost", "provenance")
    }


def test_the_explanation_of_a_failed_cell_begins_with_the_reason(fake):
    lines = ask(fake, "explain", "ft-l-tiny_llama-counterfact").splitlines()
    assert lines[0].endswith(": failed")
    assert lines[1].split() == ["reason", "it", "rained"]


def rows(out):
    head, *lines = (line.split("\t") for line in out.splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


def test_answers_are_shown_next_to_those_of_the_unedited_model(fake):
    asked = ("--axis", "reliability", "--protocol", "generation", "--limit", "1000")
    shown = rows(ask(fake, "answers", "ft-l-tiny_llama-zsre", *asked))
    unedited = rows(ask(fake, "answers", "none-tiny_llama-zsre", *asked))
    assert len(shown) == 50
    assert [row["unedited"] for row in shown] == [row["edited"] for row in unedited]
    assert {(row["prompt"], row["target"]) for row in shown} == {("The capital of France is", "Rome")}
    assert {row["edited"] for row in shown if row["score"] == "1.00"} == {"Rome"}


def test_answers_can_be_filtered_by_record_and_by_being_wrong(fake):
    shown = json.loads(ask(fake, "answers", "ft-l-tiny_llama-zsre", "--record", "r3", "--json"))
    assert {row["record_id"] for row in shown} == {"r3"}
    assert len(shown) == 2 * 4, "two protocols; reliability, generality and two probes of locality"
    wrong = json.loads(ask(fake, "answers", "ft-l-tiny_llama-zsre", "--wrong", "--json"))
    every = json.loads(ask(fake, "answers", "ft-l-tiny_llama-zsre", "--json"))
    assert wrong == [row for row in every if row["exact"] < 1]
    assert 0 < len(wrong) < len(every)


def test_in_a_pipe_each_answer_is_one_line_whatever_its_text(fake, monkeypatch):
    import pandas as pd

    file = cell(fake, "onceedit-tiny_llama-counterfact") / "records.parquet"
    changed = pd.read_parquet(file)
    changed.loc[0, ["prompt", "predicted"]] = ["two\nlines\tand a tab", "back\\slash"]
    changed.to_parquet(file)
    first = rows(ask(fake, "answers", "onceedit-tiny_llama-counterfact", "--limit", "1"))[0]
    assert (first["prompt"], first["edited"]) == (r"two\nlines\tand a tab", r"back\\slash")
    assert first["unedited"] == "–", "no cell of the unedited model has these records"


@pytest.mark.parametrize("option", ["--axis", "--protocol", "--record"])
def test_a_name_that_does_not_occur_is_one_line_with_a_command_that_shows_answers(fake, option):
    name = cell(fake, "ft-l-tiny_llama-zsre").name
    done = harness_here("answers", name, option, "nothing", "--store", fake.root)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    fix = done.stderr.partition(" → ")[2].split()
    assert fix[:3] == ["python", "-m", "harness"]
    assert len(harness_here(*fix[3:]).stdout.splitlines()) > 1
