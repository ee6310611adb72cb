"""What tests of units and launchers share: a watcher that remembers, a task without a model, a home to be spoilt."""

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from harness.run.task import Outcome
from tests.helpers.small_suites import write_suite


class Log:
    """A watcher that remembers what it was told."""

    def __init__(self):
        self.events, self.outcomes = [], []

    @contextlib.contextmanager
    def bar(self, description, total):
        yield lambda steps=1: None

    def began(self, task):
        self.events.append(("began", task.place))

    def ended(self, task, outcome):
        self.events.append(("ended", task.place))
        self.outcomes.append(outcome)


@dataclass(frozen=True)
class Errand:
    """A task that takes no time and writes down where it was run; or one that raises."""

    name: str
    root: Path
    raises: bool = False

    place = property(lambda self: f"cells/{self.name}")
    title = property(lambda self: self.name)
    needs = models = ()

    def folder(self, store):
        return store.cell(self.name)

    def run(self, runner):
        if self.raises:
            raise ZeroDivisionError("a bug in the harness")
        from harness.store.store import Store

        with self.folder(Store(self.root)).writing() as folder:
            (folder / "gpu").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
            (folder / "pid").write_text(str(os.getpid()))
        return Outcome(0.1)

    def fail(self, store, reason, log=""):
        with self.folder(store).failing(reason):
            pass


def copy_home(home, to):
    """Checkpoints, records and a suite over them, to be spoilt."""
    for name in ("llama", "gptj", "records"):
        shutil.copytree(home / name, to / name)
    write_suite(to / "small.yaml")
    return to
