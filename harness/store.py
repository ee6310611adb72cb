"""The store: one folder per cell, finished when it holds DONE and only then. Reports and MLflow read nothing else."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.canonical import plain
from harness.errors import UserError

DONE = "DONE"
FAILED = "FAILED"

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
        marker = self.path / FAILED
        return marker.read_text().strip() if marker.is_file() else None

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
        temporary folder is left over and is removed by the next writer of this folder.

        Raises:
            UserError: where the file system refuses to write, inside the block too.
        """
        yield from self._replace(DONE, f"{datetime.now(UTC).isoformat()}\n")

    @contextlib.contextmanager
    def failing(self, reason: str) -> Iterator[Path]:
        """As `writing`, for a folder that records a failure: it gets FAILED with `reason` in place of DONE."""
        yield from self._replace(FAILED, f"{reason}\n")

    def _replace(self, marker: str, content: str) -> Iterator[Path]:
        partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            with explained(self.path):
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                yield partial
                (partial / marker).write_text(content)
                for file in partial.rglob("*"):
                    _flush(file)
                _flush(partial)
                self.remove()
                partial.rename(self.path)
                _flush(self.path.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


class Store:
    """A results folder: `cells/`, `artifacts/`, `suites/`, `reports/` and the MLflow database."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def cell(self, folder: str) -> Folder:
        """The folder of a cell by its name."""
        return Folder(self.root / "cells" / folder)

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


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file under a temporary name and rename it."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True, default=plain) + "\n")
        partial.rename(path)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what a file system refuses into one line that names the mending."""
    try:
        yield
    except Exception as error:
        mend = {
            errno.ENOSPC: "free some space and run the same command again; finished cells are kept",
            errno.EDQUOT: "free some quota and run the same command again; finished cells are kept",
            errno.EROFS: "choose a folder that can be written with --store",
            errno.EACCES: "choose a folder that can be written with --store",
            errno.EPERM: "choose a folder that can be written with --store",
            errno.ENOTDIR: "choose another folder with --store",
            errno.EEXIST: "choose another folder with --store",
        }.get(number := _errno(error))
        if mend is None or _is_elsewhere(error, path):
            raise
        raise UserError(f"{path}: cannot write: {os.strerror(number)}", fix=mend) from error


def _is_elsewhere(error: Exception, path: Path) -> bool:
    """Whether a file was refused that has nothing to do with this folder, such as one that was to be read."""
    name = getattr(error, "filename", None)
    return isinstance(name, str) and not (Path(name).is_relative_to(path.parent) or path.is_relative_to(name))


def _errno(error: Exception) -> int:
    """The system's error number; libraries written in Rust, safetensors among them, give it in their text only."""
    if isinstance(error, OSError):
        return error.errno or 0
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else 0


def _clear(folder: Path) -> None:
    with explained(folder):
        shutil.rmtree(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
