"""A whole cell by EasyEdit: planned, run and written as any other."""

import os
import signal
import threading
import time

import pytest
import torch
from safetensors.torch import load_file

from harness.models.weights import FILE
from methods.easyedit import checkout, process
from methods.easyedit.editor import WeightMethod
from tests.helpers.in_process import PlanBench
from tests.helpers.small_suites import write_suite

pytestmark = pytest.mark.easyedit

FT_L = {"name": "ft-l", "layer": 1, "steps": 3, "batch": 1, "lr": 0.01, "variant": "faithful-easyedit"}


def bench_of(home, store, dtype="float32", **changes):
    """The cells of FT-L, ours and EasyEdit's, on one small model, in batch or in sequence."""
    models = [{"name": "tiny/llama", "weights": "pretrained", "path": str(home / "llama"), "dtype": dtype}]
    methods = [FT_L | {"label": "ours"}, FT_L | {"label": "theirs", "backend": "easyedit"}]
    suite = write_suite(home / "both.yaml", models=models, methods=methods, keep_weights=True, **changes)
    bench = PlanBench(suite, store)
    assert not bench.plan.missing()
    return bench


@pytest.mark.parametrize(
    "schedule", ["batch", {"sequential": {"block": 3, "score_at": [3, 8]}}], ids=["batch", "blocks"]
)
def test_a_cell_of_easyedit_gives_what_ours_gives_and_says_where_it_comes_from(home, tmp_path, schedule):
    bench = bench_of(home, tmp_path, schedule=schedule)
    cells = [bench.cell(label) for label in ("ours", "theirs")]
    assert [bench.run(cell).reason for cell in cells] == [None, None]
    folder_of_ours, folder_of_theirs = map(bench.folder, cells)
    ours, theirs = (load_file(bench.folder(cell).path / FILE) for cell in cells)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)
    metrics = [bench.folder(cell).read("metrics.json") for cell in cells]
    assert metrics[0]["teacher_forced"] == metrics[1]["teacher_forced"]
    assert metrics[1]["diagnostics"]["worker_peak_memory_bytes"] > 0
    origin = folder_of_theirs.read("provenance.json")["easyedit"]
    assert (origin["commit"], origin["clean"]) == (checkout.COMMIT, not checkout.find().changes)
    assert "right-padding" in origin["workarounds"]
    described = folder_of_theirs.read("cell.json")["method"]
    assert described["code"]["easyedit"] == checkout.COMMIT
    assert described["backend"] == "easyedit"
    assert "easyedit" not in folder_of_ours.read("provenance.json")


def test_a_cell_of_a_half_precision_model_keeps_float32_weights_and_says_so(home, tmp_path):
    wide = bench_of(home, tmp_path / "wide").cell("theirs")
    bench = bench_of(home, tmp_path, "bfloat16", schedule={"sequential": {"block": 3, "score_at": [8]}})
    cell = bench.cell("theirs")
    assert bench.run(cell).reason is None
    assert {value.dtype for value in load_file(bench.folder(cell).path / FILE).values()} == {torch.float32}
    described = bench.folder(cell).read("cell.json")["method"]
    assert (described["precision"], described["differences"]) == ("float32", [WeightMethod.wider])
    assert "precision" not in wide.identity()["method"]
    assert wide.description()["method"]["differences"] == []


def test_a_worker_that_is_killed_in_the_middle_fails_its_cell_in_one_line(home, tmp_path, monkeypatch):
    bench = bench_of(home, tmp_path)
    call = process.Worker.call

    def killed(worker, verb, *arguments):
        if verb == "apply":
            os.kill(worker.pid, signal.SIGSTOP)  # so that it is still at it when it is killed
            threading.Timer(0.3, os.kill, (worker.pid, signal.SIGKILL)).start()
        return call(worker, verb, *arguments)

    monkeypatch.setattr(process.Worker, "call", killed)
    start = time.monotonic()
    cell = bench.cell("theirs")
    reason = bench.run(cell).reason
    assert reason.startswith("WorkerError: the EasyEdit process was killed by SIGKILL in 'apply'")
    assert "\n" not in reason
    assert time.monotonic() - start < 120
    assert bench.folder(cell).failure == reason
    assert "End of its log" in (bench.folder(cell).path / "log.txt").read_text()
