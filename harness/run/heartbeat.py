"""A progress file of a batch, for watching from another machine. No decision depends on it alone."""

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from harness.api import Advance
from harness.errors import InsufficientMemoryError, Memory, UserError
from harness.files import write_json
from harness.plan.job import Job
from harness.run.jobs import Batch
from harness.run.outcome import Outcome
from harness.store.provenance import JOB

INTERVAL_S = 1.0
"""Minimum interval between writes of the file while jobs run."""
IDLE_S = 30.0
"""Maximum interval between writes, as a sign of life."""
PATIENCE_S = 5.0
"""How long the end of a batch waits for a slow file system to write the last beat."""


@dataclass(frozen=True, slots=True)
class Beat:
    """What the process that runs a batch says about itself. Times are UTC, as `datetime.isoformat` writes them.

    Attributes:
        batch: its name.
        job: the scheduler's id of the job that runs the batch; None where there is no scheduler.
        done, total: jobs of the batch that have ended, and all.
        place, title: the job that is running; empty between jobs.
        since: when it began.
        step, steps_done, steps_total: progress inside it; an empty `step` where it shows none.
        out_of_memory: the memory that the job ran out of, if the batch has ended with it.
    """

    batch: str
    host: str
    pid: int
    job: str | None
    started: str
    updated: str
    done: int
    total: int
    place: str = ""
    title: str = ""
    since: str = ""
    step: str = ""
    steps_done: int = 0
    steps_total: int = 0
    out_of_memory: Memory | None = None

    @classmethod
    def read(cls, file: Path) -> Self | None:
        """The last beat; None where there is none, or none that can be read now."""
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


class Heartbeat:
    """A `harness.run.progress.Watcher` that writes beats to a file, from a thread of its own: no phase waits for a disk.

    A job may have begun up to `INTERVAL_S` before the file says so. A beat that cannot be written is said once on
    stderr and changes nothing else.
    """

    def __init__(self, file: Path, batch: Batch) -> None:
        self._file = file
        self._number = {job.place: number for number, job in enumerate(batch.jobs)}
        now = _now()
        self._beat = Beat(batch.name, socket.gethostname(), os.getpid(), job_id(), now, now, 0, len(batch.jobs))
        self._changed, self._ending = threading.Event(), threading.Event()
        self._has_complained = False
        self._thread = threading.Thread(target=self._write_on, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._changed.set()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if isinstance(error, InsufficientMemoryError):
            self._set(out_of_memory=error.memory)
        self._ending.set()
        self._changed.set()
        self._thread.join(PATIENCE_S)

    def began(self, job: Job) -> None:
        """As `Watcher.began`. Jobs before it have ended, in this process or an earlier one."""
        self._set(done=self._number[job.place], place=job.place, title=job.title, since=_now())

    def ended(self, job: Job, outcome: Outcome) -> None:
        """As `Watcher.ended`."""
        self._set(done=self._number[job.place] + 1, place="", title="", since="")

    @contextlib.contextmanager
    def bar(self, description: str, total: int) -> Iterator[Advance]:
        """As `Bars.bar`; of bars inside each other the inner one is shown."""
        outer = self._beat

        def advance(steps: int = 1) -> None:
            self._set(steps_done=self._beat.steps_done + steps)

        self._set(step=description, steps_done=0, steps_total=total)
        try:
            yield advance
        finally:
            self._set(step=outer.step, steps_done=outer.steps_done, steps_total=outer.steps_total)

    def _set(self, **changes: Any) -> None:
        self._beat = replace(self._beat, **changes)
        self._changed.set()

    def _write_on(self) -> None:
        while not self._ending.is_set():
            self._changed.wait(IDLE_S)
            self._changed.clear()
            self._write()
            self._ending.wait(INTERVAL_S)
        self._write()

    def _write(self) -> None:
        try:
            write_json(self._file, asdict(replace(self._beat, updated=_now())))
        except (OSError, UserError) as error:
            if not self._has_complained:
                print(f"{self._file}: progress is not written: {error}", file=sys.stderr)
            self._has_complained = True


def job_id() -> str | None:
    """The scheduler's id of the job that this process belongs to, if it does."""
    return os.environ.get(JOB)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
