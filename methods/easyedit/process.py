"""The caller's end of the worker's process: started, asked, and stopped, and never waited for when it is gone. No torch."""

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
from typing import Any

from harness.errors import UserError

ROOT = Path(__file__).parents[2]
LOG = "worker.log"
TAIL_BYTES = 4000
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""The caller has what is needed; whatever EasyEdit would still download, it must not find half-way through an edit."""


class WorkerError(RuntimeError):
    """EasyEdit, or its process, has failed: one line; what the process said last is a note."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception in the worker.

    Attributes:
        message: one line.
        fix: of a `UserError`.
        is_users: it was a `UserError`.
        trace: its traceback.
    """

    message: str
    fix: str | None
    is_users: bool
    trace: str


class Worker:
    """A process with EasyEdit in it. It ends with this object, or with this process, whatever it is doing.

    Args:
        home: folder of the checkout.
    """

    def __init__(self, home: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="easyedit-"))
        self._connection, theirs = Pipe()
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        with theirs, (self.folder / LOG).open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "methods.easyedit.worker", str(theirs.fileno()), str(home)],
                cwd=self.folder,  # EasyEdit writes `logs` where it is
                env={**os.environ, **OFFLINE, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
            )
        self.stop = weakref.finalize(self, _stop, self._process, self._connection, self.folder)

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can still be asked."""
        return self.stop.alive and self._process.poll() is None

    def call(self, verb: str, *arguments: Any) -> Any:
        """Have the process do something.

        Args:
            verb: a method of `worker.Host`.
            arguments: its arguments.

        Returns:
            What the method returns.

        Raises:
            UserError: raised in the process.
            WorkerError: for any other exception there, and for a process that ends. It has been stopped then.
        """
        try:
            self._connection.send((verb, arguments))
            answer = self._connection.recv()
        except (EOFError, ConnectionError):
            raise self._ended(verb) from None
        except BaseException:  # an interrupt: the answer to this call must not become that to the next
            self.stop()
            raise
        if not isinstance(answer, Failure):
            return answer
        error: Exception = (
            UserError(answer.message, fix=answer.fix)
            if answer.is_users
            else WorkerError(f"EasyEdit failed in '{verb}': {answer.message}")
        )
        error.add_note(f"In the worker:\n{answer.trace}\nIts last words:\n{self._last_words()}")
        self.stop()
        raise error

    def _ended(self, verb: str) -> WorkerError:
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        hint = "; is the memory large enough for two models?" if code == -signal.SIGKILL else ""
        error = WorkerError(f"the process of EasyEdit {how} in '{verb}'{hint}")
        error.add_note(f"Its last words:\n{self._last_words()}")
        self.stop()
        return error

    def _last_words(self) -> str:
        log = self.folder / LOG
        return log.read_bytes()[-TAIL_BYTES:].decode(errors="replace") if log.is_file() else ""


def _stop(process: "subprocess.Popen[bytes]", connection: Connection, folder: Path) -> None:
    connection.close()
    process.kill()
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)
