"""A whole cell by EasyEdit: planned, run and written as any other."""

import os
import signal
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from harness.models.weights import FILE
from harness.plan.job import job_of
from harness.plan.plan import Plan
from harness.run.runner import Runner
from harness.store.store import Store
from harness.suite import load_suite
from methods.easyedit import checkout, process
from tests.helpers.artifacts import build, quiet_context
from tests.helpers.small_suites import write_suite

pytestmark = pytest.mark.easyedit

FT_L = {"name": "ft-l", "layer": 1, "steps": 3, "batch": 1, "lr": 0.01, "variant": "faithful-easyedit"}


class Bench:
    """The cells of FT-L, ours and EasyEdit's, in one or several acts, on one small model."""

    def __init__(self, home, store, **changes):
        torch.set_num_threads(1)
        models = [{"name": "tiny/llama", "weights": "pretrained", "path": str(home / "llama")}]
        methods = [FT_L | {"label": "ours"}, FT_L | {"label": "theirs", "backend": "easyedit"}]
        suite = write_suite(home / "both.yaml", models=models, methods=methods, keep_weights=True, **changes)
        self.plan = Plan(load_suite(suite), Store(store))
        assert self.plan.missing() == []
        context = quiet_context(self.plan.store)
        self.runner = Runner(self.plan.store, context)
        for spec, seed in self.plan.artifacts(self.plan.runnable):
            build(self.plan.store, context, [spec], seed)
        self.cells = {cell.label: cell for cell in self.plan.runnable}

    def folder(self, label):
        return self.plan.store.cell(self.cells[label].folder)


@pytest.mark.parametrize(
    "schedule", ["batch", {"sequential": {"block": 3, "score_at": [3, 8]}}], ids=["batch", "blocks"]
)
def test_a_cell_of_easyedit_gives_what_ours_gives_and_says_where_it_comes_from(home, tmp_path, schedule):
    bench = Bench(home, tmp_path, schedule=schedule)
    for cell in bench.cells.values():
        assert bench.runner.run(job_of(cell, cell.seed, "cpu")).reason is None
    ours, theirs = (load_file(bench.folder(label).path / FILE) for label in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)
    metrics = [bench.folder(label).read("metrics.json") for label in ("ours", "theirs")]
    assert metrics[0]["teacher_forced"] == metrics[1]["teacher_forced"]
    assert metrics[1]["diagnostics"]["worker_peak_memory_bytes"] > 0
    origin = bench.folder("theirs").read("provenance.json")["easyedit"]
    assert (origin["commit"], origin["clean"]) == (checkout.COMMIT, not checkout.find().changes)
    assert "right-padding" in origin["workarounds"]
    described = bench.folder("theirs").read("cell.json")["method"]
    assert described["code"]["easyedit"] == checkout.COMMIT
    assert described["backend"] == "easyedit"
    assert "easyedit" not in bench.folder("ours").read("provenance.json")


def test_a_worker_that_is_killed_in_the_middle_fails_its_cell_in_one_line(home, tmp_path, monkeypatch):
    bench = Bench(home, tmp_path)
    call = process.Worker.call

    def killed(worker, verb, *arguments):
        if verb == "apply":
            os.kill(worker.pid, signal.SIGSTOP)  # so that it is still at it when it is killed
            threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL)).start()
        return call(worker, verb, *arguments)

    monkeypatch.setattr(process.Worker, "call", killed)
    start = time.monotonic()
    cell = bench.cells["theirs"]
    reason = bench.runner.run(job_of(cell, cell.seed, "cpu")).reason
    assert reason.startswith("WorkerError: the EasyEdit process was killed by SIGKILL in 'apply'")
    assert "\n" not in reason
    assert time.monotonic() - start < 120
    assert bench.folder("theirs").failure == reason
    assert "End of its log" in (bench.folder("theirs").path / "log.txt").read_text()
