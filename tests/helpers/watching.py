"""What tests of batches and launchers share: a watcher that remembers, a job without a model, a home to be spoilt."""

import contextlib
import os
import shutil

from harness.api import ArtifactSpec
from harness.files import write_json
from harness.plan.estimate import Resources
from harness.plan.job import Job, place_of
from tests.helpers.small_suites import write_suite


class Log:
    """A watcher that remembers what it was told."""

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


def errand(name, needs=()):
    """A job that takes no time and writes down which process ran it with which GPU."""
    spec = ArtifactSpec("errand", "setup", {"name": name}, "tests.helpers.watching:build")
    return Job(spec, 0, place_of(spec), name, needs, (), Resources(0, 0.0))


def build(spec, context, folder):
    """Builder of an errand."""
    write_json(folder / "process.json", {"gpu": os.environ.get("CUDA_VISIBLE_DEVICES", "none"), "pid": os.getpid()})


class Bug:
    """In place of a job's needs: whoever looks at them runs into a bug."""

    def __iter__(self):
        raise ZeroDivisionError("a bug in the harness")


def copy_home(home, to):
    """Checkpoints, records and a suite over them, to be spoilt."""
    for name in ("llama", "gptj", "records"):
        shutil.copytree(home / name, to / name)
    write_suite(to / "small.yaml")
    return to
