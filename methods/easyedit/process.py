"""The caller's end of the worker process: start it, call it, stop it, and detect when it has died. Does not import torch."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import weakref
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Literal

from harness.errors import InsufficientMemoryError, UserError

ROOT = Path(__file__).parents[2]
LOG = "worker.log"
TAIL_BYTES = 4000
VMSTAT = Path("/proc/vmstat")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""The caller provides all files; EasyEdit must not start downloads in the middle of an edit."""


class WorkerError(RuntimeError):
    """Failure of EasyEdit or its process: a one-line message, with the end of the process's log as a note."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception in the worker.

    Attributes:
        message: one-line message.
        fix: fix of a `UserError`.
        kind: whether it was a `UserError`, for lack of GPU memory, or anything else.
        trace: its traceback.
    """

    message: str
    fix: str | None
    kind: Literal["user", "memory", "bug"]
    trace: str

    def error(self, verb: str) -> Exception:
        """The same for the caller of a method."""
        if self.kind == "user":
            return UserError(self.message, fix=self.fix)
        if self.kind == "memory":
            return InsufficientMemoryError(f"EasyEdit ran out of GPU memory in '{verb}': {self.message}")
        return WorkerError(f"EasyEdit failed in '{verb}': {self.message}")


class Worker:
    """A process that runs EasyEdit. It is killed together with this object or this process.

    Args:
        home: folder of the checkout.
    """

    def __init__(self, home: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="easyedit-"))
        self._connection, theirs = Pipe()
        self._kills = _kills_for_memory()
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with theirs, (self.folder / LOG).open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "methods.easyedit.worker", str(theirs.fileno()), str(home)],
                cwd=self.folder,  # EasyEdit writes `logs` to its working directory
                env={**os.environ, **OFFLINE, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
            )
        self.stop = weakref.finalize(self, _stop, self._process, self._connection, self.folder)

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it is still running."""
        return self.stop.alive and self._process.poll() is None

    def call(self, verb: str, *arguments: Any) -> Any:
        """Call a method in the process.

        Args:
            verb: name of a method of `worker.Host`.
            arguments: its arguments.

        Returns:
            The method's return value.

        Raises:
            UserError: if the method raised one.
            InsufficientMemoryError: if it ran out of GPU memory, or if the process was killed while the kernel killed for lack
                of memory.
            WorkerError: for any other exception, or if the process dies. In all cases the worker has been stopped.
        """
        try:
            self._connection.send((verb, arguments))
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            raise self._ended(verb) from None
        except BaseException:  # an interrupt: the next call must not receive this call's answer
            self.stop()
            raise
        if not isinstance(answer, Failure):
            return answer
        error = answer.error(verb)
        error.add_note(f"In the worker:\n{answer.trace}\nEnd of its log:\n{self._last_words()}")
        self.stop()
        raise error

    def _ended(self, verb: str) -> Exception:
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        what = f"the EasyEdit process {how} in '{verb}'"
        error: Exception
        if code != -signal.SIGKILL:
            error = WorkerError(what)
        elif _kills_for_memory() > self._kills:
            error = InsufficientMemoryError(f"{what}, and this machine has run out of memory since it started", "RAM")
        else:
            error = WorkerError(f"{what}; is there enough memory for two models?")
        error.add_note(f"End of its log:\n{self._last_words()}")
        self.stop()
        return error

    def _last_words(self) -> str:
        log = self.folder / LOG
        return log.read_bytes()[-TAIL_BYTES:].decode(errors="replace") if log.is_file() else ""


def _kills_for_memory() -> int:
    """How many processes of this machine the kernel has killed for lack of memory, their own or that of their cgroup.

    0 where the kernel does not say.
    """
    with contextlib.suppress(OSError):
        for line in VMSTAT.read_text(encoding="ascii").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0


def _stop(process: "subprocess.Popen[bytes]", connection: Connection, folder: Path) -> None:
    connection.close()
    process.kill()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)
