"""A checkout that is gone or another one by the time a cell runs. None of EasyEdit's code is needed."""

import shutil

import pytest

from harness.plan.job import job_of
from harness.plan.plan import Plan
from harness.run.runner import Runner
from harness.store.store import Store
from harness.suite import load_suite
from methods.easyedit import checkout
from tests.helpers.fake_checkout import pinned, write_checkout
from tests.helpers.in_process import build, quiet_context
from tests.helpers.small_suites import write_home, write_suite

FT_L = {"name": "ft-l", "layer": 1, "steps": 3, "batch": 1, "lr": 0.01, "variant": "faithful-easyedit"}


@pytest.fixture
def source(tmp_path, monkeypatch):
    return pinned(write_checkout(tmp_path / "checkout"), monkeypatch)


@pytest.fixture
def plan(source, tmp_path):
    """One cell by EasyEdit, with all that it needs but EasyEdit."""
    (home := tmp_path / "home").mkdir()
    write_home(home)
    suite = write_suite(
        home / "one.yaml",
        models=[{"name": "tiny/llama", "weights": "pretrained", "path": str(home / "llama")}],
        methods=[FT_L | {"backend": "easyedit"}],
    )
    made = Plan(load_suite(suite), Store(tmp_path / "store"))
    assert not made.missing()
    return made


def remove(source):
    shutil.rmtree(source)


def change(source):
    (source / "easyeditor" / "util.py").write_text("# changed meanwhile\n")


@pytest.mark.parametrize("happens", [remove, change])
def test_a_checkout_that_is_not_the_planned_one_any_more_fails_the_cell_in_one_line(plan, source, happens):
    """Its name says which code has made a cell, so that no other may."""
    (cell,) = plan.runnable
    context = quiet_context(plan.store)
    for spec, seed in plan.artifacts([cell]):
        build(plan.store, context, [spec], seed)
    folder = cell.folder
    happens(source)
    reason = Runner(plan.store, context).run(job_of(cell, cell.seed, "cpu")).reason
    assert "was changed or removed while this process was running" in reason
    assert "\n" not in reason
    assert plan.store.cell(folder).failure == reason


def test_what_was_found_stays_the_answer_of_a_process(source):
    found = checkout.find()
    remove(source)
    assert checkout.find() == found
