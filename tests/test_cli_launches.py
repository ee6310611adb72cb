"""Commands on launches without a cluster, answered from the store and the launch folders."""

import json
import subprocess
import sys

import pytest

from harness.files import write_json
from harness.plan.plan import Plan
from harness.store.store import Store
from harness.suite import load_suite
from slurm.launch import Launch
from tests.helpers.commands import ROOT, environment, harness_here


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.fixture
def made(home, tmp_path):
    return Plan(load_suite(home / "small.yaml"), Store(tmp_path / "store"))


@pytest.fixture
def launch(made):
    """One cell done, one failed, one running, and one pending after it in the same job."""
    done, failed, running, waiting = made.runnable
    with made.store.cell(done.folder).writing() as folder:
        (folder / "log.txt").write_text("went well\n")
    with made.store.cell(failed.folder).failing("it rained") as folder:
        (folder / "log.txt").write_text("drops\nmore drops\n")
    launch = Launch.create(made.store, "small", "paper", {})
    launch.ask("only", [("00001-cells", [f"cells/{running.folder}", f"cells/{waiting.folder}"])])
    launch.taken({"001-00001-cells": "7_0"})
    now = "2026-01-01T00:00:00+00:00"
    beat = {"batch": "001-00001-cells", "host": "node5", "pid": 1, "job": "7_0", "started": now, "updated": now}
    beat |= {"done": 0, "total": 2, "place": f"cells/{running.folder}", "title": "", "since": now}
    write_json(launch.progress("001-00001-cells"), beat | {"step": "evaluating", "steps_done": 3, "steps_total": 9})
    (launch.submitit / "7_0_0_log.err").write_text("a job that runs\n")
    return launch


def status(home, made, *options):
    return harness_here("status", home / "small.yaml", "--store", made.store.root, *options)


def test_status_shows_the_state_and_log_of_each_cell(home, made, launch):
    done = status(home, made, "--json")
    assert done.returncode == 1, "a cell has failed"
    shown = json.loads(done.stdout)
    assert shown["counts"] == {"running": 1, "pending": 1, "done": 1, "failed": 1}
    assert shown["launches"] == [launch.name]
    rows = {row["state"]: row for row in shown["cells"]}
    assert (rows["running"]["node"], rows["running"]["job"], rows["running"]["progress"]) == (
        "node5",
        "7_0",
        "evaluating 3/9",
    )
    assert rows["pending"]["job"] == "7_0"
    assert rows["failed"]["note"] == "it rained"
    assert rows["failed"]["log"] == str(made.store.root / rows["failed"]["place"] / "log.txt")
    assert rows["done"]["age_s"] >= 0


def test_status_reports_that_slurm_does_not_answer_and_considers_no_job_lost(home, made, launch):
    shown = status(home, made).stdout
    assert "SLURM does not answer: squeue: not found" in shown
    assert "1 running, 1 pending, 1 done, 1 failed" in shown


def test_status_without_launches_does_not_query_slurm(home, made):
    done = status(home, made)
    assert done.returncode == 0
    assert "4 to do" in done.stdout
    assert "SLURM" not in done.stdout


def test_status_watches_until_there_is_nothing_left_to_wait_for(home, made):
    for cell in made.runnable:
        with made.store.cell(cell.folder).writing():
            pass
    assert "4 done" in status(home, made, "--watch", "0.1").stdout


def logs(made, name, *options):
    return harness_here("logs", name, "--store", made.store.root, *options)


def test_logs_come_from_the_cell_or_from_its_job(made, launch):
    done, failed, running, waiting = made.runnable
    assert "went well" in logs(made, done.folder).stdout
    assert logs(made, failed.cell_id[:12], "--lines", "1").stdout.splitlines()[1:] == ["more drops"]
    for cell in (running, waiting):
        assert "a job that runs" in logs(made, cell.folder).stdout
    unknown = logs(made, "nothing")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "matches 0 cells" in unknown.stderr


def test_logs_of_a_rerun_cell_come_from_its_job(made, launch):
    running = made.runnable[2]
    with made.store.cell(running.folder).failing("it rained") as folder:
        (folder / "log.txt").write_text("drops\n")
    assert "drops" in logs(made, running.folder).stdout
    made.store.cell(running.folder).reopen()
    shown = logs(made, running.folder).stdout
    assert "a job that runs" in shown
    assert "drops" not in shown


def test_an_ambiguous_name_is_refused_with_all_matches(made, launch):
    shown = logs(made, "none-")
    assert (shown.returncode, shown.stderr.count("\n")) == (2, 1)
    assert "'none-' matches 2 cells" in shown.stderr
    assert all(cell.folder in shown.stderr for cell in made.runnable if cell.folder.startswith("none-"))


def test_a_retry_without_failures_says_how_many_cells_are_to_do(home, made):
    with made.store.cell(made.runnable[0].folder).writing():
        pass
    done = harness_here("retry", home / "small.yaml", "--failed", "--no-report", "--store", made.store.root)
    assert done.returncode == 0
    assert "no cell of small.paper has failed" in done.stdout
    assert "; 3 are still to do: python -m harness run " in done.stdout


def test_cells_of_live_jobs_are_neither_run_here_nor_discarded(home, made, launch):
    for options in ([], ["--force"]):
        done = harness_here("run", home / "small.yaml", "--store", made.store.root, "--no-report", *options)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "2 of these cells belong to running launch" in done.stderr
    assert made.store.cell(made.runnable[0].folder).is_done


def test_cancel_without_a_launch_is_refused(home, made):
    done = harness_here("cancel", home / "small.yaml", "--store", made.store.root)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no launch of small.paper is running" in done.stderr


@pytest.mark.slow
def test_sync_watches_and_imports_newly_finished_cells(tmp_path):
    from tests.helpers.fake_store import FakeStore

    store = FakeStore(tmp_path).write_suite(methods=["none"], models=["tiny/llama"], data=["zsre"])
    command = [sys.executable, "-m", "harness", "sync", "--store", tmp_path, "--watch", "0.2"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert "1 run created, 0 replaced, 0 unchanged" in process.stdout.readline()
            assert "mlflow ui" in process.stdout.readline()
            store.write_cell("ft-l", "tiny/llama", "zsre")
            store.write_manifest()
            (tmp_path / "cells" / store.cells[0] / "DONE").touch()
            assert "1 run created, 0 replaced, 1 unchanged" in process.stdout.readline()
        finally:
            process.kill()
