"""The local launcher: jobs on this machine, in this process or in several. A killed one costs only the job that it was running."""

import contextlib
import itertools
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field

from harness.api import Advance, Launcher, Summary
from harness.errors import UserError
from harness.plan.job import Job, jobs
from harness.plan.plan import Plan
from harness.registry import register_launcher
from harness.run.agenda import Agenda
from harness.run.jobs import Batch, reopen, run_batch, summarize
from harness.run.outcome import Outcome, record_failure
from harness.run.profiles import LaunchProfile
from harness.run.progress import Display, Watcher
from harness.store.store import Store

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef

PATIENCE_S = 10.0
"""How long an idle process may take to end."""

Count = Annotated[int, Field(ge=1)]

Message: TypeAlias = tuple[str, Outcome | None] | Exception | None
"""From a worker: the place of a job that starts, or ends with an outcome; the exception that ended it; None after a batch."""

_SPAWN = multiprocessing.get_context("spawn")
"""A fork would share threads and CUDA with its parent."""


class LocalProfile(LaunchProfile):
    """This machine, without a scheduler."""

    processes: Count | Literal["cores"] | None = Field(
        None,
        description="number of batches that run at the same time; `cores`: as many as the CPU has cores for, at the suite's "
        "`threads` each; default: one per GPU, or one without a GPU; one on several GPUs if a model has a `device_map`",
    )
    packing: Count = Field(8, description="maximum number of jobs in a batch; they all load the same model")


@register_launcher("local")
class LocalLauncher(Launcher):
    """Runs jobs on this machine, in the command's own process or in several, of which each sees one GPU if there are any.

    A model that is spread over GPUs needs to see all of them, so there is one process if any job has such a model.
    """

    Profile: ClassVar[type[LocalProfile]] = LocalProfile
    profile: LocalProfile

    def run(self, plan: Plan, display: Display, *, detach: bool = False) -> Summary:
        """As `Launcher.run`, but without detaching: the run ends with this process."""
        todo = jobs(plan)
        reopen(plan.store, todo)
        display.expect(todo)
        devices = gpus() if plan.device == "cuda" else []
        processes = self.processes(plan.suite.threads, devices)
        spread = sorted({model.name for job in todo for model in job.models if model.device_map})
        if spread and processes > 1 and len(devices) > 1:
            display.note(f"one process that sees all GPUs, because device_map spreads {', '.join(spread)} over them")
            processes = 1
        if processes == 1:
            run_batch(Batch("all", plan.store.root, tuple(todo), plan.device, plan.suite.threads), display)
        else:
            shared_by = math.ceil(processes / max(1, len(devices)))
            where = (plan.store.root, plan.device, plan.suite.threads)
            with Workers(processes, devices, display) as workers:
                workers.run(Agenda(todo, *where, self.profile.packing, processes, shared_by))
        return summarize(plan, todo)

    def processes(self, threads: int | None, devices: Sequence[str]) -> int:
        """Number of processes; cells without a number of threads use all cores, so only one runs at a time."""
        wanted = self.profile.processes
        if isinstance(wanted, int):
            return wanted
        if wanted == "cores" and threads and not devices:
            return max(1, cores() // threads)
        return max(1, len(devices))


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; asked of the kernel, not of torch.

    The variable is read as CUDA reads it: a name that is none, such as -1, hides all that come after it.
    """
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        names = (name.strip() for name in allowed.split(","))
        return list(itertools.takewhile(lambda name: name not in {"", "-1"}, names))
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


class Workers:
    """Worker processes, each started when there is a batch for it and kept for the next batch.

    Args:
        processes: how many there are.
        gpus: names for CUDA_VISIBLE_DEVICES, given out in turn, so that each process sees one; empty without GPU.
        watcher: notified, in this process, of what all of them do.
    """

    def __init__(self, processes: int, gpus: Sequence[str], watcher: Watcher) -> None:
        self._workers = [_Worker(gpus[n % len(gpus)] if gpus else None, watcher) for n in range(processes)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for worker in self._workers:
            worker.dismiss(PATIENCE_S if kind is None else 0)

    def run(self, agenda: Agenda) -> None:
        """Settle all jobs of an agenda.

        Raises:
            UserError: if the store cannot be written.
            RuntimeError: for a bug of the harness in a worker, with the worker's traceback.
        """
        while True:
            for worker in self._workers:
                if worker.batch is None and (batch := agenda.take(worker.held)):
                    worker.begin(batch)
            busy = {worker.connection: worker for worker in self._workers if worker.batch}
            if not busy:
                break
            for connection in wait(list(busy)):
                busy[connection].hear(agenda)  # type: ignore[index]
        if not agenda.is_empty:
            raise RuntimeError("jobs are left that need each other, or something that is not in the plan")


class _Worker:
    """A process, as its parent sees it; a fresh one after its end."""

    def __init__(self, gpu: str | None, watcher: Watcher) -> None:
        self.batch: Batch | None = None
        self.held: ModelRef | None = None
        self.connection: Connection
        self._gpu = gpu
        self._watcher = watcher
        self._process: BaseProcess | None = None
        self._running: Job | None = None
        self._since = 0.0

    def begin(self, batch: Batch) -> None:
        """Give a batch to the process."""
        if self._process is None or not self._process.is_alive():
            self.connection, theirs = _SPAWN.Pipe()
            self._process = _SPAWN.Process(target=_work, args=(theirs, self._gpu))
            self._process.start()
            theirs.close()
        self.batch, self._since = batch, time.perf_counter()
        self.held = batch.jobs[0].model
        with contextlib.suppress(BrokenPipeError):  # it has just died; `hear` finds out as for any other
            self.connection.send(batch)

    def hear(self, agenda: Agenda) -> None:
        """Handle one message: tell the agenda what is settled, or must be done by a new process."""
        try:
            message: Message = self.connection.recv()
        except (EOFError, OSError):
            self._bury(agenda)
            return
        if isinstance(message, Exception):
            raise message
        if message is None:
            self._end(self._batch)
            return
        place, outcome = message
        job = next(job for job in self._batch.jobs if job.place == place)
        if outcome is None:
            self._running, self._since = job, time.perf_counter()
            self._watcher.began(job)
        else:
            self._running = None
            agenda.settled(place)
            self._watcher.ended(job, outcome)

    def dismiss(self, patience_s: float) -> None:
        """End the process; the next run repeats what it has not finished."""
        if self._process is not None:
            self.connection.close()
            self._process.join(patience_s)
            self._process.kill()
            self._process.join()

    @property
    def _batch(self) -> Batch:
        if self.batch is None:
            raise RuntimeError("a process without a batch has sent a message")
        return self.batch

    def _end(self, batch: Batch) -> None:
        self.batch = None
        if left := batch.unsettled():
            raise RuntimeError(f"batch {batch.name} ended, but a need of {left[0].place} is not built")

    def _bury(self, agenda: Agenda) -> None:
        """Record how the process died, for the job that was running, or for the first if none was yet."""
        batch, process = self._batch, self._process
        if process is None:
            raise RuntimeError(f"batch {batch.name} has no process")
        process.join()
        self.connection.close()
        store, left = Store(batch.store), batch.unsettled()
        if victim := self._running or next(iter(left), None):
            folder = store.folder(victim.place)
            if not folder.is_settled:
                record_failure(store, victim, f"its process {_ending(process.exitcode)}")
            self._watcher.ended(victim, Outcome(time.perf_counter() - self._since, folder.failure))
        unsettled = batch.unsettled()
        for job in batch.jobs:
            if job not in unsettled:
                agenda.settled(job.place)
        agenda.put_back(unsettled)
        self.batch = self._process = self._running = None


class _Wire:
    """A `harness.run.progress.Watcher` that tells the parent. It has no bars; those of several processes would overlap."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @contextlib.contextmanager
    def bar(self, description: str, total: int) -> Iterator[Advance]:
        yield lambda steps=1: None

    def began(self, job: Job) -> None:
        self._connection.send((job.place, None))

    def ended(self, job: Job, outcome: Outcome) -> None:
        self._connection.send((job.place, outcome))


def _work(connection: Connection, gpu: str | None) -> None:
    """What a worker does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        while True:
            _answer(connection.recv(), connection)
    except EOFError:
        return


def _answer(batch: Batch, connection: Connection) -> None:
    try:
        run_batch(batch, _Wire(connection))
    except UserError as error:
        connection.send(error)
    except Exception:
        connection.send(RuntimeError(traceback.format_exc()))
    else:
        connection.send(None)


def _end_with_parent() -> None:
    """End a worker with its parent, so that none writes to a store that is no longer locked."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _ending(code: int | None) -> str:
    """How a process ended that did not end well."""
    if code is not None and code < 0:
        hint = " (often the system itself, when memory runs out)" if -code == signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}"
    return f"ended with exit code {code}"
