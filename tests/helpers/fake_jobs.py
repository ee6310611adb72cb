"""Jobs without a model, and a watcher that records what it is told, for tests of batches and launchers."""

import contextlib
import os

from harness.api import ArtifactSpec
from harness.files import write_json
from harness.plan.estimate import Resources
from harness.plan.job import Job, place_of


class RecordingWatcher:
    """A watcher that records what it is told."""

    def __init__(self):
        self.events, self.outcomes = [], []

    @contextlib.contextmanager
    def bar(self, description, total):
        yield lambda steps=1: None

    def began(self, job):
        self.events.append(("began", job.place))

    def ended(self, job, outcome):
        self.events.append(("ended", job.place))
        self.outcomes.append(outcome)


def fake_job(name, needs=()):
    """A job that takes no time and records which process ran it with which GPU."""
    spec = ArtifactSpec("fake", "setup", {"name": name}, "tests.helpers.fake_jobs:build")
    return Job(spec, 0, place_of(spec), name, needs, (), Resources(0, 0.0))


def build(spec, context, folder):
    """Builder of a fake job's artifact."""
    write_json(folder / "process.json", {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES", "none"), "pid": os.getpid()})


class BrokenNeeds:
    """Needs of a job that raise when a worker looks at them, as a bug in the harness would."""

    def __iter__(self):
        return iter(())

    def __reduce__(self):
        return _Raising, ()


class _Raising:
    def __iter__(self):
        raise ZeroDivisionError("a bug in the harness")
