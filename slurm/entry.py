"""Entry point of a SLURM job: run one batch with a heartbeat, and react to SLURM's warning before the time limit."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from harness.commands import COMMAND
from harness.errors import Memory, UserError
from harness.plan.job import place_of
from harness.run.heartbeat import Beat, Heartbeat
from harness.run.jobs import Batch, run_batch
from harness.store.provenance import JOB
from harness.store.store import Store

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

EARLY_S = 90.0
"""A warning of the end comes so much before its time at most: SLURM's own minute, and the time until Python has started."""
IDLE_RESTARTS = 3
"""A SLURM job that has not moved is put back into the queue no more often than this."""


class BatchEntry:
    """Callable for submitit that runs one batch; its results are on disk, so it may be called again.

    Args:
        progress: file in which the batch says how far it is.
        limit_s: time limit of the SLURM job.
        warned_s: time between SLURM's warning and the end.
        command: of the launch, for the provenance of cells.
        larger: memories of which the next resource class has more. The SLURM job ends with a job that runs out of one of
            them, and its heartbeat says why, as if SLURM had ended it.
    """

    def __init__(
        self, progress: Path, limit_s: float, warned_s: float, command: str, *, larger: Collection[Memory] = ()
    ) -> None:
        self.progress = progress
        self.limit_s = limit_s
        self.warned_s = warned_s
        self.command = command
        self.larger = larger

    def __call__(self, batch: Batch) -> None:
        """Settle the jobs of the batch that are not settled.

        Raises:
            UserError: if this code makes a different cell of a job than the code that planned it.
            InsufficientMemoryError: if a job runs out of a memory in `larger`.
        """
        for job in batch.jobs:
            if (place := place_of(job.work)) != job.place:
                raise UserError(
                    f"the code was changed after these jobs were submitted: {job.place} is now {place}",
                    fix=f"end this launch as its driver says, then: {self.command}",
                )
        os.environ[COMMAND] = self.command
        if name := slurm_job():
            os.environ[JOB] = name
        with self._heeding_warnings(batch), Heartbeat(self.progress, batch) as beat:
            run_batch(batch, beat, larger=self.larger)

    def checkpoint(self, batch: Batch) -> "DelayedSubmission":
        """The callable that submitit requeues: the same one, because it continues from the disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, batch)

    @contextlib.contextmanager
    def _heeding_warnings(self, batch: Batch) -> Iterator[None]:
        """Let submitit put the SLURM job back into the queue when it is warned, but only where that helps.

        One at the end of its time that has settled nothing and kept no block would only run out of time again. It continues
        for the time that is left, and SLURM's state TIMEOUT tells the driver to give it more. The same if SLURM cannot be
        asked.
        """
        from submitit.core.job_environment import JobEnvironment

        warning = JobEnvironment._usr_sig()
        requeue = signal.getsignal(warning)
        if not callable(requeue):
            raise RuntimeError("a batch entry runs only as a job of submitit")
        start, unsettled = time.monotonic(), len(batch.unsettled())

        def heed(signum: int, frame: FrameType | None) -> None:
            ends = time.monotonic() - start >= self.limit_s - self.warned_s - EARLY_S
            if (ends or restarts() >= IDLE_RESTARTS) and not self._has_moved(batch, unsettled):
                _say("warned of the end; there is nothing that another job could continue from")
                return
            try:
                requeue(signum, frame)
            except Exception as error:  # would otherwise look like an error of the job that it interrupts
                _say(f"warned of the end; not put back into the queue: {error}")

        signal.signal(warning, heed)
        try:
            yield
        finally:
            signal.signal(warning, requeue)

    def _has_moved(self, batch: Batch, unsettled: int) -> bool:
        """Whether this SLURM job has done something that need not be done again."""
        beat = Beat.read(self.progress)
        return len(batch.unsettled()) < unsettled or (beat is not None and has_moved(Store(batch.store), beat))


def has_moved(store: Store, beat: Beat) -> bool:
    """Whether the cell of a beat has saved a block of its sequence, or its scores, since it started in that SLURM job."""
    parent, _, folder = beat.place.partition("/")
    kept = store.checkpoint(folder)
    return parent == "cells" and kept.is_dir() and kept.stat().st_mtime > datetime.fromisoformat(beat.since).timestamp()


def slurm_job() -> str:
    """Id of the SLURM job that this process belongs to, such as `12`, or `10_2` for an element of an array; empty outside SLURM."""
    environment = os.environ
    if "SLURM_ARRAY_JOB_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID", "")


def restarts() -> int:
    """How often SLURM has put this job back into the queue."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _say(sentence: str) -> None:
    """Print into the SLURM job's own log, also while a cell collects what is printed."""
    print(sentence, file=sys.__stderr__, flush=True)
