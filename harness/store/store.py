"""The store: one folder per cell, finished when it holds DONE and only then. Reports and MLflow read nothing else."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.files import explained, locked, this_process, write_json

DONE = "DONE"
FAILED = "FAILED"
AGAIN = "AGAIN"

CHECKPOINT = ".sequence"
DROPPED = ".dropped"
"""Endings of hidden folders: of an unfinished sequence, and of what is being removed."""


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
        """Whether its job has ended, with or without a result."""
        return self.is_done or self.failure is not None

    @property
    def has_failed(self) -> bool:
        """Whether its last attempt failed, or was a retry that never ended."""
        return self.failure is not None or (self.path / AGAIN).is_file()

    def reopen(self) -> None:
        """Mark a failed folder as not yet run. Its files stay until the folder is replaced."""
        with explained(self.path):
            if (self.path / FAILED).is_file():
                (self.path / FAILED).rename(self.path / AGAIN)

    def read(self, name: str) -> Any:
        """A JSON file of the folder."""
        return json.loads((self.path / name).read_text())

    def remove(self) -> None:
        """Remove the folder, DONE first: if killed in between, it is unfinished and not half a result."""
        with explained(self.path):
            if self.path.exists():
                (self.path / DONE).unlink(missing_ok=True)
                shutil.rmtree(self.path)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield an empty temporary folder; if the block ends without an exception, it becomes this folder, with DONE.

        An exception removes the temporary folder and leaves the old content, if any, in place. After a SIGKILL the
        temporary folder remains and is removed when this folder is finished. A folder that is already finished stays as
        it is: if a cluster runs a job twice at the same time, the first result counts, and both are the same.

        Raises:
            UserError: if the file system refuses to write, inside the block too.
        """
        yield from self._replace(DONE, f"{datetime.now(UTC).isoformat()}\n")

    @contextlib.contextmanager
    def failing(self, reason: str) -> Iterator[Path]:
        """As `writing`, for a folder that records a failure: it gets FAILED with `reason` in place of DONE."""
        yield from self._replace(FAILED, f"{reason}\n")

    def _replace(self, marker: str, content: str) -> Iterator[Path]:
        partial = self._partial(this_process())
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
                raise  # else another process has finished it in the meantime and removed what was written here
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
        """Names of the cells that have a folder, finished or not: one listing in place of thousands of look-ups."""
        folder = self.root / "cells"
        return {path.name for path in folder.glob("[!.]*")}

    def discard(self, folder: str) -> None:
        """Remove a cell and its checkpoint, so that it is run again from the start."""
        self.cell(folder).remove()
        self.drop_checkpoint(folder)

    def checkpoint(self, folder: str) -> Path:
        """Checkpoint folder of a cell that edits in sequence, by the name of the cell's folder."""
        return self.root / "cells" / f".{folder}{CHECKPOINT}"

    def drop_checkpoint(self, folder: str) -> None:
        """Remove a cell's checkpoint; renamed first, because a part of it would be no checkpoint."""
        kept = self.checkpoint(folder)
        with explained(kept):
            if kept.exists():
                _clear(kept.rename(kept.with_name(f"{kept.name}{DROPPED}")))

    def artifact(self, name: str, key: str) -> Folder:
        """The folder of an artifact by its name and content address."""
        return Folder(self.root / "artifacts" / name / key)

    def manifest(self, suite: str, scale: str) -> Path:
        """The file that lists the cells of the last run of a suite."""
        return self.root / "suites" / f"{suite}.{scale}.json"

    def write_manifest(self, suite: str, scale: str, content: Mapping[str, Any]) -> None:
        """Replace a suite's manifest atomically."""
        write_json(self.manifest(suite, scale), content)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only writer of this store on this machine.

        Raises:
            UserError: if another run writes to it, it is read-only, or it cannot be created.
        """
        with explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            if not self.root.stat().st_mode & 0o222:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.root))
        with locked(
            self.root / ".lock",
            f"{self.root}: another run is writing to this store",
            fix="wait for it to end, or give this run its own folder with --store",
        ):
            self._sweep()
            yield

    def _sweep(self) -> None:
        """Remove what killed runs left over and no run can use."""
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
    """Whether a name means a cell's folder: the beginning of the folder's name, or a cell id or the beginning of one."""
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
