"""What a batch says about itself while it runs."""

import contextlib
import dataclasses
import json
import os
import threading
import time
from datetime import datetime

import pytest

from harness.errors import InsufficientMemoryError, UserError
from harness.run import heartbeat
from harness.run.heartbeat import Beat, Heartbeat, job_id
from harness.run.jobs import Batch
from harness.run.outcome import Outcome
from tests.helpers.fake_jobs import fake_job


@pytest.fixture
def batch(tmp_path):
    return Batch("00001-llama", tmp_path, tuple(map(fake_job, "abc")), "cpu", 1)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "progress" / "00001-llama.json"


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(heartbeat, "INTERVAL_S", 0.001)


def seen(file, condition, limit_s=10):
    """The first beat of which a condition holds."""
    start = time.monotonic()
    while (beat := Beat.read(file)) is None or not condition(beat):
        assert time.monotonic() - start < limit_s, beat
        time.sleep(0.002)
    return beat


def test_the_file_says_who_does_what_and_how_far_it_is(batch, file, often, monkeypatch):
    monkeypatch.setenv("HARNESS_JOB", "77")
    a, b, _ = batch.jobs
    with Heartbeat(file, batch) as beat:
        first = seen(file, lambda said: True)
        assert (first.batch, first.pid, first.job) == ("00001-llama", os.getpid(), "77")
        assert (first.done, first.total, first.place, first.step) == (0, 3, "", "")
        beat.began(a)
        assert seen(file, lambda said: said.place).title == "a"
        beat.ended(a, Outcome(0.1))
        beat.began(b)
        with beat.bar("outer", 2) as outer:
            outer()
            with beat.bar("training", 50) as advance:
                advance(20)
                advance()
                now = seen(file, lambda said: said.steps_done == 21)
                assert (now.place, now.done, now.step, now.steps_total) == (b.place, 1, "training", 50)
            now = seen(file, lambda said: said.step == "outer")
            assert (now.steps_done, now.steps_total) == (1, 2)
        beat.ended(b, Outcome(0.1))
    last = Beat.read(file)
    assert (last.done, last.place, last.step) == (2, "", "")
    assert datetime.fromisoformat(first.started) <= datetime.fromisoformat(first.updated)
    assert datetime.fromisoformat(now.since) <= datetime.fromisoformat(last.updated)


def test_a_job_that_goes_on_counts_what_was_done_before_it(batch, file):
    with Heartbeat(file, batch) as beat:
        beat.began(batch.jobs[2])
    assert Beat.read(file).done == 2


@pytest.mark.parametrize(
    ("error", "memory"),
    [(InsufficientMemoryError("two models", "RAM"), "RAM"), (InsufficientMemoryError(""), "GPU"), (KeyError(), None)],
)
def test_the_last_beat_says_which_memory_was_too_small_for_the_running_job(batch, file, error, memory):
    with contextlib.suppress(type(error)), Heartbeat(file, batch) as beat:
        beat.began(batch.jobs[1])
        raise error
    last = Beat.read(file)
    assert (last.place, last.out_of_memory) == (batch.jobs[1].place, memory)


def test_many_steps_are_few_writes(batch, file, monkeypatch):
    writes = []
    original = heartbeat.write_json
    monkeypatch.setattr(heartbeat, "write_json", lambda *args: (writes.append(time.monotonic()), original(*args)))
    with Heartbeat(file, batch) as beat, beat.bar("steps", 10**6) as advance:
        start = time.monotonic()
        while time.monotonic() - start < 1.5:
            advance()
    assert len(writes) <= 3 + 1, "at most once a second, and the last word"


def test_a_slow_file_system_delays_no_step_and_no_end(batch, file, monkeypatch):
    stuck = threading.Event()
    monkeypatch.setattr(heartbeat, "write_json", lambda *_: stuck.wait(30))
    monkeypatch.setattr(heartbeat, "PATIENCE_S", 0.2)
    start = time.monotonic()
    with Heartbeat(file, batch) as beat:
        for job in batch.jobs:
            beat.began(job)
            beat.ended(job, Outcome(0.0))
    assert time.monotonic() - start < 5
    stuck.set()
    beat._thread.join(10)  # what it still writes would be found by the next test


@pytest.mark.parametrize("error", [OSError("stale file handle"), UserError("cannot write: No space left")])
def test_what_cannot_be_written_is_said_once_and_stops_nothing(batch, file, often, monkeypatch, capsys, error):
    tried = threading.Semaphore(0)

    def refuse(*_):
        tried.release()
        raise error

    monkeypatch.setattr(heartbeat, "write_json", refuse)
    with Heartbeat(file, batch) as beat:
        for job in batch.jobs:
            beat.began(job)
            assert tried.acquire(timeout=10)
    assert capsys.readouterr().err == f"{file}: progress is not written: {error}\n"


def test_what_cannot_be_read_is_no_beat(file, batch):
    assert Beat.read(file) is None
    with Heartbeat(file, batch):
        pass
    whole = file.read_text()
    assert dataclasses.asdict(Beat.read(file)) == json.loads(whole)
    for spoilt in (whole[:40], "[]", "{}", whole.replace('"pid"', '"pit"')):
        file.write_text(spoilt)
        assert Beat.read(file) is None


def test_the_job_is_named_by_the_environment(monkeypatch):
    monkeypatch.delenv("HARNESS_JOB", raising=False)
    assert job_id() is None
    monkeypatch.setenv("HARNESS_JOB", "10_2")
    assert job_id() == "10_2"
