"""What a job runs: it refuses cells that its code does not know, and can tell whether it has moved."""

import contextlib
import dataclasses
import os
import pickle
from datetime import UTC, datetime, timedelta

import pytest
import torch

from harness.api import ArtifactSpec
from harness.commands import COMMAND
from harness.errors import InsufficientMemoryError, UserError
from harness.plan.job import job_of
from harness.run.heartbeat import Beat
from harness.run.jobs import Batch
from harness.store.store import Store
from slurm.entry import BatchEntry, has_moved, slurm_job
from tests.helpers.fake_jobs import fake_job

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
BEAT = Beat("001", "node1", 1, "7_0", NOW.isoformat(), NOW.isoformat(), 0, 1, "cells/a-1", "a", NOW.isoformat())


@pytest.mark.parametrize(("minutes", "moved"), [(-1, False), (1, True)])
def test_a_sequence_has_moved_if_it_kept_a_block_since_it_began_in_this_job(tmp_path, minutes, moved):
    store = Store(tmp_path)
    assert not has_moved(store, BEAT)
    kept = store.checkpoint("a-1")
    kept.mkdir(parents=True)
    then = (NOW + timedelta(minutes=minutes)).timestamp()
    os.utime(kept, (then, then))
    assert has_moved(store, BEAT) is moved


@pytest.mark.parametrize("place", ["", "artifacts/a/a-1"])
def test_nothing_else_moves_in_blocks(tmp_path, place):
    store = Store(tmp_path)
    store.checkpoint("a-1").mkdir(parents=True)
    assert not has_moved(store, dataclasses.replace(BEAT, place=place))


def test_cells_that_were_planned_with_other_code_are_refused(tmp_path):
    planned = fake_job("a")
    batch = Batch("001", tmp_path, (dataclasses.replace(planned, place="artifacts/fake/other"),), "cpu", 1)
    entry = pickle.loads(pickle.dumps(BatchEntry(tmp_path / "001.json", 60, 0, "harness run")))
    with pytest.raises(UserError, match=f"artifacts/fake/other is now {planned.place}"):
        entry(batch)
    assert list(tmp_path.iterdir()) == []


def too_large(spec, context, folder):
    """Builder of an artifact that takes more memory than any GPU has."""
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("larger", [{"RAM"}, {"RAM", "GPU"}])
def test_out_of_gpu_memory_ends_the_slurm_job_only_if_there_is_a_larger_gpu(tmp_path, monkeypatch, larger):
    spec = ArtifactSpec("large", "setup", {}, f"{__name__}:too_large")
    todo = (job_of(spec, 0, "cpu"), fake_job("next"))
    monkeypatch.setenv(COMMAND, "")  # which the entry sets for its process, here that of other tests
    monkeypatch.setattr(BatchEntry, "_heeding_warnings", lambda *_: contextlib.nullcontext())
    entry = BatchEntry(tmp_path / "001.json", 60, 0, "harness run", larger=larger)
    has_larger_gpu = "GPU" in larger
    expected = pytest.raises(InsufficientMemoryError) if has_larger_gpu else contextlib.nullcontext()
    with expected:
        entry(Batch("001", tmp_path / "store", todo, "cpu", 1))
    settled = [Store(tmp_path / "store").folder(job.place).is_settled for job in todo]
    assert settled == [not has_larger_gpu] * 2
    beat = Beat.read(entry.progress)
    assert (beat.place, beat.out_of_memory) == ((todo[0].place, "GPU") if has_larger_gpu else ("", None))


def test_a_job_is_named_as_slurm_names_it(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert slurm_job() == ""
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert slurm_job() == "12"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "10")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert slurm_job() == "10_2"
