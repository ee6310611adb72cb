"""Units in several processes of this machine. One that is killed costs its running task; the others notice nothing."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Self, TypeAlias

from harness.api import Advance
from harness.errors import UserError
from harness.run.task import Outcome, Task
from harness.run.work import Unit, Watcher, run_unit
from harness.store.store import Store

Message: TypeAlias = tuple[str, Outcome | None] | Exception | None
"""From a worker: the place of a task that begins, or ends with an outcome; what ends the worker; None after a unit."""

PATIENCE_S = 10.0
"""How long a process that has nothing more to do may take to end."""

_SPAWN = multiprocessing.get_context("spawn")
"""A fork would share threads and CUDA with its parent."""


class Workers:
    """Processes that take units, each started when it has something to do and kept for the next unit."""

    def __init__(self, processes: int, gpus: Sequence[str], watcher: Watcher) -> None:
        """Start nothing yet.

        Args:
            processes: how many there are.
            gpus: names for CUDA_VISIBLE_DEVICES, given out in turn, so that each process sees one; empty without GPU.
            watcher: is told, in this process, what all of them do.
        """
        self._workers = [_Worker(gpus[n % len(gpus)] if gpus else None, watcher) for n in range(processes)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for worker in self._workers:
            worker.dismiss(PATIENCE_S if kind is None else 0)

    def run(self, units: Sequence[Unit]) -> None:
        """Settle the tasks of all units, none of which needs what another builds.

        Raises:
            UserError: when the store cannot be written.
            RuntimeError: for a bug of the harness in a worker, with the worker's traceback.
        """
        waiting = deque(units)
        while waiting or any(worker.unit for worker in self._workers):
            for worker in self._workers:
                if waiting and worker.unit is None:
                    worker.begin(waiting.popleft())
            busy = {worker.connection: worker for worker in self._workers if worker.unit}
            for connection in wait(list(busy)):
                if left := busy[connection].hear():  # type: ignore[index]
                    waiting.appendleft(left)


class _Worker:
    """A process, as its parent sees it; a fresh one after its end."""

    def __init__(self, gpu: str | None, watcher: Watcher) -> None:
        self.unit: Unit | None = None
        self.connection: Connection
        self._gpu = gpu
        self._watcher = watcher
        self._process: BaseProcess | None = None
        self._running: Task | None = None
        self._since = 0.0

    def begin(self, unit: Unit) -> None:
        """Hand a unit to the process."""
        if self._process is None or not self._process.is_alive():
            self.connection, theirs = _SPAWN.Pipe()
            self._process = _SPAWN.Process(target=_work, args=(theirs, self._gpu))
            self._process.start()
            theirs.close()
        self.unit, self._since = unit, time.perf_counter()
        with contextlib.suppress(BrokenPipeError):  # it has just died, and is heard of as any other
            self.connection.send(unit)

    def hear(self) -> Unit | None:
        """Take one message; the unit where it has to go on in a fresh process."""
        try:
            message: Message = self.connection.recv()
        except (EOFError, OSError):
            return self._bury()
        if isinstance(message, Exception):
            raise message
        if message is None:
            self._end(self._unit)
            return None
        place, outcome = message
        task = next(task for task in self._unit.tasks if task.place == place)
        if outcome is None:
            self._running, self._since = task, time.perf_counter()
            self._watcher.began(task)
        else:
            self._running = None
            self._watcher.ended(task, outcome)
        return None

    def dismiss(self, patience_s: float) -> None:
        """End the process: whatever it has not finished is done again by the next run."""
        if self._process is not None:
            self.connection.close()
            self._process.join(patience_s)
            self._process.kill()
            self._process.join()

    @property
    def _unit(self) -> Unit:
        if self.unit is None:
            raise RuntimeError("a process without a unit has something to say")
        return self.unit

    def _end(self, unit: Unit) -> None:
        self.unit = None
        if left := unit.unsettled():
            raise RuntimeError(
                f"unit {unit.name} ended while this waits for what no wave before has built: {left[0].place}"
            )

    def _bury(self) -> Unit | None:
        """Record how the process died, for the task that was running, or for the first where none was yet."""
        unit, process = self._unit, self._process
        if process is None:
            raise RuntimeError(f"unit {unit.name} has no process")
        process.join()
        self.connection.close()
        left = unit.unsettled()
        if victim := self._running or next(iter(left), None):
            folder = victim.folder(Store(unit.store))
            if not folder.is_settled:
                victim.fail(Store(unit.store), f"its process {_ending(process.exitcode)}")
            self._watcher.ended(victim, Outcome(time.perf_counter() - self._since, folder.failure))
        self.unit = self._process = self._running = None
        return unit if unit.unsettled() else None


class _Wire:
    """A `harness.run.work.Watcher` that tells the parent. Bars of several processes would be in each other's way."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @contextlib.contextmanager
    def bar(self, description: str, total: int) -> Iterator[Advance]:
        yield lambda steps=1: None

    def began(self, task: Task) -> None:
        self._connection.send((task.place, None))

    def ended(self, task: Task, outcome: Outcome) -> None:
        self._connection.send((task.place, outcome))


def _work(connection: Connection, gpu: str | None) -> None:
    """What a worker does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        while True:
            _answer(connection.recv(), connection)
    except EOFError:
        return


def _answer(unit: Unit, connection: Connection) -> None:
    try:
        run_unit(unit, _Wire(connection))
    except UserError as error:
        connection.send(error)
    except Exception:
        connection.send(RuntimeError(traceback.format_exc()))
    else:
        connection.send(None)


def _end_with_parent() -> None:
    """Leave no worker that writes to a store which nobody locks any more."""
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
