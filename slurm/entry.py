"""What a job runs: one unit, with a sign of life beside it, and what it does when SLURM warns it."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.run.heartbeat import Beat, Heartbeat
from harness.run.work import Unit, run_unit
from harness.store.store import Store

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

EARLY_S = 90.0
"""A warning of the end comes so much before its time at most: SLURM's own minute, and the time until Python has started."""
IDLE_RESTARTS = 3
"""A job that has not moved is put back into the queue no more often than this."""


class Entry:
    """A function of one unit, for submitit; all that it has done lies on the disk, so that it may be called again.

    Args:
        places: of the unit's tasks, as they were planned.
        progress: file in which the unit says how far it is.
        limit_s: time limit of the job.
        warned_s: time between SLURM's warning and the end.
        command: `sys.argv` of the launch, for the provenance of cells.
    """

    def __init__(
        self, places: Sequence[str], progress: Path, limit_s: float, warned_s: float, command: list[str]
    ) -> None:
        self.places = list(places)
        self.progress = progress
        self.limit_s = limit_s
        self.warned_s = warned_s
        self.command = command

    def __call__(self, unit: Unit) -> None:
        """Settle the tasks of the unit that are not settled.

        Raises:
            UserError: when this code makes other cells of them than the code that they were planned with.
        """
        if (places := [task.place for task in unit.tasks]) != self.places:
            raise UserError(
                f"the code was changed after these jobs were submitted: {self.places[0]} is now {places[0]}",
                fix="harness cancel, then run the suite again",
            )
        sys.argv = self.command
        with self._heeding_warnings(unit), Heartbeat(self.progress, unit) as beat:
            run_unit(unit, beat)

    def checkpoint(self, unit: Unit) -> "DelayedSubmission":
        """What submitit puts back into the queue: the same again, for it goes on from the disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, unit)

    @contextlib.contextmanager
    def _heeding_warnings(self, unit: Unit) -> Iterator[None]:
        """Let submitit put the job back into the queue when it is warned, but only where that helps.

        A job at the end of its time that has settled nothing and kept no block would only run out of time again. It goes on for
        what is left of it, and SLURM's word TIMEOUT tells the driver to give it more. So it does when SLURM cannot be asked.
        """
        from submitit.core.job_environment import JobEnvironment

        warning = JobEnvironment._usr_sig()
        requeue = signal.getsignal(warning)
        if not callable(requeue):
            raise RuntimeError("a unit is run as a job of submitit only")
        start, unsettled = time.monotonic(), len(unit.unsettled())

        def heed(signum: int, frame: FrameType | None) -> None:
            ends = time.monotonic() - start >= self.limit_s - self.warned_s - EARLY_S
            if (ends or restarts() >= IDLE_RESTARTS) and not self._has_moved(unit, unsettled):
                _say("warned of the end; there is nothing that another job could go on from")
                return
            try:
                requeue(signum, frame)
            except Exception as error:  # would else be taken for an error of the task that it interrupts
                _say(f"warned of the end; not put back into the queue: {error}")

        signal.signal(warning, heed)
        try:
            yield
        finally:
            signal.signal(warning, requeue)

    def _has_moved(self, unit: Unit, unsettled: int) -> bool:
        """Whether this job has done something that need not be done again."""
        beat = Beat.read(self.progress)
        return len(unit.unsettled()) < unsettled or (beat is not None and has_moved(Store(unit.store), beat))


def has_moved(store: Store, beat: Beat) -> bool:
    """Whether the task of a beat, a sequence, has kept a block since it began in that job."""
    parent, _, folder = beat.place.partition("/")
    kept = store.checkpoint(folder)
    return parent == "cells" and kept.is_dir() and kept.stat().st_mtime > datetime.fromisoformat(beat.since).timestamp()


def restarts() -> int:
    """How often SLURM has put this job back into the queue."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _say(sentence: str) -> None:
    """Into the job's own log, also while a cell collects what is printed."""
    print(sentence, file=sys.__stderr__, flush=True)
