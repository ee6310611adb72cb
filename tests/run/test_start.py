"""Before a run: what its manifest says about the suite, and whose results a store holds."""

import io
import json
import shutil

import pytest
import yaml
from rich.console import Console

from harness.api import Launcher, Summary
from harness.data.synthetic import upstream_rows
from harness.errors import UserError
from harness.plan.plan import Plan
from harness.run.start import run
from harness.store.manifest import find_manifest
from harness.store.store import Store
from harness.suite import load_suite
from tests.helpers.commands import harness, harness_here

MAIN = "suites/main_table.yaml"
RATES = {"a": 0.01, "b": 0.05}


class Idle(Launcher):
    """Runs nothing."""

    def __init__(self) -> None:
        super().__init__(None)

    def run(self, plan, display, *, detach=False):
        return Summary((), (), ())


@pytest.fixture
def records(tmp_path):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "counterfact.json").write_text(json.dumps(upstream_rows("counterfact")[:40]))
    return tmp_path / "records"


@pytest.fixture
def write(tmp_path, records):
    """Write a suite of two models and two methods; `changes` replace keys."""

    def _write(file="a.yaml", **changes):
        rate = RATES.get(file[0], 0.01)
        content = {
            "name": "ablation",
            "models": [{"name": f"tiny/{name}", "weights": "random"} for name in ("llama", "gptj")],
            "methods": ["none", {"name": "ft-l", "layer": 1, "steps": 3, "batch": 4, "lr": rate}],
            "datasets": [{"name": "counterfact", "path": str(records), "edits": 8, "train": 8, "unrelated": 4}],
            "tables": ["main"],
            **changes,
        }
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content))
        return path

    return _write


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def start(suite, store, **options):
    """Run nothing of a suite; returns the plan and the manifest of the run."""
    plan = Plan(load_suite(suite, **options), Store(store))
    run(plan, Idle(), Console(file=io.StringIO()))
    chosen = {key: options.get(key) for key in ("edits", "backend", "data")}
    return plan, find_manifest(store, plan.suite.name, plan.suite.scale, **chosen)


def test_a_filter_decides_what_runs_and_the_manifest_still_lists_the_whole_suite(write, store):
    suite = write()
    plan, partial = start(suite, store, only=["method=none", "model=tiny/gptj"])
    assert len(plan.cells) == 1
    _, complete = start(suite, store)
    assert len(complete.cells) == 4
    assert partial.cells == complete.cells
    assert start(suite, store, only=["method=ft-l"])[1].cells == complete.cells
    assert partial.again("run", store) == f"python -m harness run {suite} --store {store}"


def started(suite, store, **options):
    """Run nothing of a suite; returns the exit code and what was printed."""
    said = io.StringIO()
    return run(Plan(load_suite(suite), Store(store)), Idle(), Console(file=said), **options), said.getvalue()


def test_a_cell_that_cannot_run_here_stops_no_other_and_the_run_ends_with_1(write, store, records):
    gone = {"name": "tiny/mistral", "weights": "pretrained", "path": "nowhere"}
    suite = write(models=[{"name": "tiny/llama", "weights": "random"}, gone])
    code, said = started(suite, store)
    assert code == 1
    line = f"cannot run: 2 cells on tiny/mistral: {suite}:"
    assert said.count(line) == 2, "before and after"
    assert "0 failed, 2 cannot run here" in said
    manifest = find_manifest(Store(store).root, "ablation", "paper")
    assert len(manifest.cells) == 2
    assert [(each.stem, each.was_asked) for each in manifest.unresolved] == [
        (f"{method}-tiny_mistral-counterfact", True) for method in ("none", "ft-l")
    ]


def test_a_detached_launch_with_cells_that_cannot_run_ends_with_1_too(write, store, monkeypatch):
    monkeypatch.setattr(Idle, "run", lambda self, plan, display, *, detach=False: None)
    gone = {"name": "counterfact", "path": "nowhere", "edits": 8}
    there = yaml.safe_load(write().read_text())["datasets"]
    assert started(write(), store, detach=True)[0] == 0
    code, said = started(write("z.yaml", name="two", datasets=[*there, {**gone, "name": "zsre"}]), store, detach=True)
    assert code == 1
    assert "cannot run: 4 cells with zsre: " in said


def test_a_run_of_which_nothing_can_run_stops_before_anything_is_done(write, store):
    gone = {"name": "tiny/mistral", "weights": "pretrained", "path": "nowhere"}
    with pytest.raises(UserError, match="no such folder: nowhere"):
        started(write(models=[gone]), store)
    assert not store.exists()


def test_a_strict_run_stops_at_the_first_cell_that_cannot_run(write, store):
    gone = {"name": "tiny/mistral", "weights": "pretrained", "path": "nowhere"}
    with pytest.raises(UserError, match="no such folder: nowhere"):
        started(write(models=[{"name": "tiny/llama", "weights": "random"}, gone]), store, is_strict=True)
    assert not store.exists()


def test_a_model_that_cannot_be_downloaded_takes_only_its_own_cells_away(write, store, monkeypatch):
    def offline(source, revision=""):
        raise UserError(f"{source} cannot be reached", fix="go online")

    monkeypatch.setattr("harness.plan.plan.sources.obtain", offline)
    monkeypatch.setattr("harness.models.hub.complete_snapshot", lambda *_: None)
    code, said = started(write(models=[{"name": "tiny/llama", "weights": "random"}, "llama2-7b"]), store)
    assert code == 1
    assert "cannot run: 2 cells on llama2-7b: meta-llama/Llama-2-7b-hf cannot be reached → go online" in said
    assert len(find_manifest(store, "ablation", "paper").cells) == 2


def test_a_second_suite_with_the_same_name_is_refused_and_both_files_are_named(write, store):
    first, second = write("a.yaml"), write("b.yaml")
    _, manifest = start(first, store)
    with pytest.raises(UserError, match=r"name of two different suites, .*/b\.yaml and .*/a\.yaml") as refusal:
        start(second, store)
    assert "\n" not in str(refusal.value)
    assert "another `name:`" in str(refusal.value.fix)
    assert find_manifest(store, "ablation", "paper") == manifest
    reported = harness_here("report", second, "--store", store)
    assert (reported.returncode, reported.stderr.count("\n")) == (2, 1)
    assert "name of two different suites" in reported.stderr
    start(write("b.yaml", name="other"), store)  # the way out
    assert find_manifest(store, "ablation", "paper") == manifest


def test_the_first_file_may_also_be_the_one_that_is_renamed(write, store):
    start(write("a.yaml"), store)
    write("a.yaml", name="other")
    start(write("b.yaml"), store)


def test_a_suite_stays_the_same_when_its_file_is_edited_moved_or_copied_with_its_store(write, store, tmp_path):
    suite = write("a.yaml")
    first = start(suite, store)[1]
    more = [*yaml.safe_load(suite.read_text())["methods"], {"name": "ft-l", "label": "again", "lr": 0.1}]
    edited = start(write("a.yaml", methods=more), store)[1]
    assert set(first.cells) < set(edited.cells)
    moved = suite.rename(tmp_path / "moved.yaml")
    assert start(moved, store)[1].cells == edited.cells
    copy = tmp_path / "copy"
    shutil.copytree(store, copy / "store")
    write("copy/moved.yaml", methods=[*more, {"name": "ft-l", "label": "third", "lr": 0.2}])
    assert len(start(copy / "moved.yaml", copy / "store")[1].cells) == len(edited.cells) + 2


def test_models_that_are_not_selected_need_not_be_there_and_say_why(write, store, tmp_path):
    absent = {"name": "tiny/llama", "weights": "pretrained", "path": str(tmp_path / "nowhere")}
    suite = write(models=[absent, {"name": "tiny/gptj", "weights": "random"}])
    _, manifest = start(suite, store, only=["model=tiny/gptj"])
    assert [cell.rpartition("-")[0] for cell in manifest.cells] == [
        "none-tiny_gptj-counterfact",
        "ft-l-tiny_gptj-counterfact",
    ]
    assert {each.stem for each in manifest.unresolved} == {"none-tiny_llama-counterfact", "ft-l-tiny_llama-counterfact"}
    assert all("no such folder" in each.reason and "\n" not in each.reason for each in manifest.unresolved)
    with pytest.raises(UserError, match="no such folder"):
        start(suite, store, only=["model=tiny/llama"])


def test_cells_of_earlier_runs_stay_known_while_their_records_are_missing(write, records, store, tmp_path):
    selected = tmp_path / "selected"
    shutil.copytree(records, selected)
    (selected / "counterfact.json").rename(selected / "zsre.json")
    (selected / "zsre.json").write_text(json.dumps(upstream_rows("zsre")[:40]))
    sources = {"counterfact": records, "zsre": selected}
    suite = write(
        datasets=[{"name": name, "path": str(path), "edits": 8} for name, path in sources.items()], seeds=[0, 1]
    )
    before = start(suite, store)[1]
    shutil.rmtree(records)
    after = start(suite, store, only=["dataset=zsre"])[1]
    assert (after.cells, after.unresolved) == (before.cells, ())


@pytest.fixture
def only_short_prompts(monkeypatch):
    """GPT-J cannot read the paper's prompts."""

    def too_long(texts, reader, overhead=0):
        return {texts[0].record_id: 9999} if reader.name == "tiny/gptj" and "[Half" in texts[0].text else {}

    monkeypatch.setattr("harness.plan.plan.too_long", too_long)


def test_a_prompt_that_is_too_long_for_a_model_leaves_each_cell_once_however_often_the_suite_runs(
    write, store, only_short_prompts
):
    suite = write(prompts=["none", "paper"])
    first = start(suite, store)[1]
    assert len(set(first.cells)) == 6
    assert len(first.unresolved) == 2
    assert (start(suite, store)[1].cells, start(suite, store)[1].unresolved) == (first.cells, first.unresolved)


def test_cells_of_which_only_the_prompt_differs_stay_known_while_their_model_cannot_read_one(write, store, request):
    suite = write(prompts=["none", "paper"], seeds=[0, 1])
    before = start(suite, store)[1]
    request.getfixturevalue("only_short_prompts")
    after = start(suite, store)[1]
    assert (after.cells, after.unresolved) == (before.cells, ())


def test_cells_in_a_manifest_of_an_earlier_version_stay_known_each_once(write, store, request):
    suite, file = write(prompts=["none", "paper"]), store / "suites" / "ablation.paper.json"
    before = start(suite, store)[1]
    content = json.loads(file.read_text())
    del content["combinations"]
    file.write_text(json.dumps({**content, "cells": [*content["cells"], content["cells"][0]]}))
    request.getfixturevalue("only_short_prompts")
    assert start(suite, store)[1].cells == before.cells


def test_runs_on_other_records_or_with_other_options_have_tables_of_their_own(write, records, store):
    suite = write(datasets=[{"name": "counterfact", "edits": 8}], models=["llama2-7b"], methods=["none"])
    options = ({}, {"edits": 4}, {"data": str(records)}, {"data": str(records), "edits": 4, "backend": "native"})
    found = [start(suite, store, scale="mini", **each)[1] for each in options]
    assert [manifest.name for manifest in found] == [
        "ablation.mini",
        "ablation.mini.edits-4",
        "ablation.mini.data",
        "ablation.mini.data.edits-4.native",
    ]
    assert len({cell for manifest in found[:3] for cell in manifest.cells}) == 3
    assert [find_manifest(store, "ablation", "mini", **each) for each in options] == found
    with pytest.raises(UserError, match=r"with these options, only with no option, '--data \S+', .*'--edits 4'"):
        find_manifest(store, "ablation", "mini", edits=9)


def test_other_records_under_the_same_options_are_refused(write, records, store):
    suite = write()
    start(suite, store)
    rows = json.loads((records / "counterfact.json").read_text())
    (records / "counterfact.json").write_text(json.dumps(rows[1:]))
    with pytest.raises(
        UserError, match=r"ablation\.paper has results on other records .*counterfact, 8 edits"
    ) as refusal:
        start(suite, store)
    assert str(refusal.value.fix).endswith(f"rm {store}/suites/ablation.paper.json")
    (store / "suites" / "ablation.paper.json").unlink()
    start(suite, store)


@pytest.mark.parametrize("what", ["relations", "path", "file", "too_long"])
def test_entries_of_one_dataset_are_not_taken_for_each_other(what, write, records, store, monkeypatch):
    rows = json.loads((records / "counterfact.json").read_text())
    more = records.with_name("more")
    more.mkdir()
    for folder, name, those in ((more, "counterfact.json", rows[5:]), (records, "zsre.json", rows[:30])):
        (folder / name).write_text(json.dumps(those))
    long = str(rows[0]["case_id"]) if what == "too_long" else None
    monkeypatch.setattr(
        "harness.plan.plan.too_long",
        lambda texts, reader, overhead=0: dict.fromkeys({text.record_id for text in texts} & {long}, 9999),
    )
    given = {
        "relations": ("seen", "unseen"),
        "path": (str(records), str(more)),
        "file": ("counterfact.json", "zsre.json"),
        "too_long": ("refuse", "drop"),
    }[what]
    one = {"name": "counterfact", "path": str(records), "file": "counterfact.json", "edits": 8, "train": 8}
    one |= {"unrelated": 4, "split": "all"}
    entries = [{**one, what: value} for value in given]
    first = start(write(datasets=entries), store)[1]
    assert set(start(write(datasets=entries[::-1]), store)[1].cells) == set(first.cells)


def test_without_records_a_run_is_refused_in_one_line_that_fetches_them_and_runs(tmp_path):
    asked = ["run", MAIN, "--scale", "small", "--store", tmp_path]
    done = harness(*asked)
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"harness: {MAIN}: no records of 'zsre': no folder given, by --data or HARNESS_DATA (and "
    )
    fetch, again = done.stderr.partition(" → ")[2].split(" && ")
    assert fetch == "python -m harness data fetch --to data"
    assert again.endswith(f" run {MAIN} --scale small --store {tmp_path} --data data\n")
    done = harness(*asked, "--only", "dataset=counterfact", "--only", "model=smollm2-135m")
    assert "→ python -m harness data fetch counterfact --to data && python -m " in done.stderr
