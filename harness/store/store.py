"""The store: one folder per cell, finished when it holds DONE and only then. Reports and MLflow read nothing else."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import explained, write_json

DONE = "DONE"
FAILED = "FAILED"
AGAIN = "AGAIN"

CHECKPOINT = ".sequence"
DROPPED = ".dropped"
"""Endings of hidden folders: of a cell in blocks that is not finished, and of what is being removed."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that appears whole: written under a temporary name, renamed when its last file, DONE, is in it."""

    path: Path

    @property
    def is_done(self) -> bool:
        """Whether everything that belongs in the folder is in it."""
        return (self.path / DONE).is_file()

    @property
    def failure(self) -> str | None:
        """The recorded reason of a failure, or None."""
        try:
            return (self.path / FAILED).read_text().strip()
        except (FileNotFoundError, NotADirectoryError):
            return None

    @property
    def is_settled(self) -> bool:
        """Whether its task has ended, well or not."""
        return self.is_done or self.failure is not None

    @property
    def has_failed(self) -> bool:
        """Whether its last attempt failed, or was to make up for a failure and came to no end."""
        return self.failure is not None or (self.path / AGAIN).is_file()

    def reopen(self) -> None:
        """Make a failed folder one to do. What is known of the failure stays until the folder is replaced."""
        with explained(self.path):
            if (self.path / FAILED).is_file():
                (self.path / FAILED).rename(self.path / AGAIN)

    def read(self, name: str) -> Any:
        """A JSON file of the folder."""
        return json.loads((self.path / name).read_text())

    def remove(self) -> None:
        """Take the folder away, DONE first: killed in between, it is unfinished and not half a result."""
        with explained(self.path):
            if self.path.exists():
                (self.path / DONE).unlink(missing_ok=True)
                shutil.rmtree(self.path)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield an empty temporary folder; when the block ends without exception it becomes this folder, with DONE.

        An exception leaves no trace of the temporary folder and the old content, if any, in place. After a SIGKILL the
        temporary folder is left over and is removed when this folder is finished. A folder that is finished already stays
        as it is: where a cluster runs a job twice at the same time, the first result counts, and both are the same.

        Raises:
            UserError: where the file system refuses to write, inside the block too.
        """
        yield from self._replace(DONE, f"{datetime.now(UTC).isoformat()}\n")

    @contextlib.contextmanager
    def failing(self, reason: str) -> Iterator[Path]:
        """As `writing`, for a folder that records a failure: it gets FAILED with `reason` in place of DONE."""
        yield from self._replace(FAILED, f"{reason}\n")

    def _replace(self, marker: str, content: str) -> Iterator[Path]:
        partial = self._partial(f"{socket.gethostname()}-{os.getpid()}")
        was_done = self.is_done
        try:
            with explained(self.path):
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                yield partial
                (partial / marker).write_text(content)
                for file in partial.rglob("*"):
                    _flush(file)
                _flush(partial)
                if not self.is_done:
                    self.remove()
                    partial.rename(self.path)
                    _flush(self.path.parent)
        except Exception:
            if was_done or not self.is_done:
                raise  # else another process has finished it meanwhile, and has cleared away what was written here
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if self.is_done:
            for left in self.path.parent.glob(self._partial("*").name):
                shutil.rmtree(left, ignore_errors=True)

    def _partial(self, writer: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{writer}.partial")


class Store:
    """A results folder: `cells/`, `artifacts/`, `suites/`, `reports/` and the MLflow database."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def cell(self, folder: str) -> Folder:
        """The folder of a cell by its name."""
        return Folder(self.root / "cells" / folder)

    def folder(self, place: str) -> Folder:
        """The folder of a job by its place, `cells/…` or `artifacts/<name>/<key>`."""
        return Folder(self.root / place)

    def cells(self) -> set[str]:
        """Names of the cells that have a folder, finished or not: one look where a sweep would need thousands."""
        folder = self.root / "cells"
        return {path.name for path in folder.glob("[!.]*")}

    def discard(self, folder: str) -> None:
        """Remove a cell and what is kept of it on the way, so that it is run again from its start."""
        self.cell(folder).remove()
        self.drop_checkpoint(folder)

    def checkpoint(self, folder: str) -> Path:
        """Where a cell in blocks keeps how far it is, by the name of its folder."""
        return self.root / "cells" / f".{folder}{CHECKPOINT}"

    def drop_checkpoint(self, folder: str) -> None:
        """Remove what a cell has kept on the way; never a part of it, which would be no checkpoint."""
        kept = self.checkpoint(folder)
        with explained(kept):
            if kept.exists():
                _clear(kept.rename(kept.with_name(f"{kept.name}{DROPPED}")))

    def artifact(self, name: str, key: str) -> Folder:
        """The folder of an artifact by its name and content address."""
        return Folder(self.root / "artifacts" / name / key)

    def manifest(self, suite: str, scale: str) -> Path:
        """The file that says which cells the last run of a suite consists of."""
        return self.root / "suites" / f"{suite}.{scale}.json"

    def write_manifest(self, suite: str, scale: str, content: Mapping[str, Any]) -> None:
        """Replace a suite's manifest atomically."""
        write_json(self.manifest(suite, scale), content)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only writer of this store on this machine.

        Raises:
            UserError: when another run writes to it, when it is read-only, or when it cannot be made.
        """
        with explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            if not self.root.stat().st_mode & 0o222:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.root))
            lock = (self.root / ".lock").open("a+")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
                raise UserError(
                    f"{self.root}: another run is writing to this store ({holder})",
                    fix="wait for it to end, or give this run its own folder with --store",
                ) from None
            lock.truncate(0)
            lock.write(f"pid {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
            lock.flush()
            self._sweep()
            yield

    def _sweep(self) -> None:
        """Clear away what a killed run had no more use for."""
        cells = self.root / "cells"
        for dropped in cells.glob(f".*{DROPPED}"):
            _clear(dropped)
        for kept in cells.glob(f".*{CHECKPOINT}"):
            folder = kept.name.removeprefix(".").removesuffix(CHECKPOINT)
            if self.cell(folder).is_done:
                self.drop_checkpoint(folder)
        for partial in (*cells.glob(".*.partial"), *(self.root / "artifacts").glob("*/.*.partial")):
            done = (Folder(other) for other in partial.parent.iterdir() if partial.name.startswith(f".{other.name}."))
            if any(folder.is_done for folder in done):
                _clear(partial)


def is_called(folder: str, name: str) -> bool:
    """Whether the folder of a cell fits a name: the beginning of the folder's, or a cell id or the beginning of one."""
    of_id = folder.rpartition("-")[2]
    return folder.startswith(name) or of_id.startswith(name[: len(of_id)])


def _clear(folder: Path) -> None:
    with explained(folder):
        shutil.rmtree(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
