"""The store: one folder per cell, finished if and only if it contains DONE. Reports and MLflow read nothing else."""

import contextlib
import errno
import json
import os
import shlex
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.commands import harness_command, same_command, same_command_with
from harness.errors import UserError, nearest
from harness.files import explained, locked, not_writable, share_like, this_process
from harness.store.manifest import Manifest, manifests

DONE = "DONE"
FAILED = "FAILED"
AGAIN = "AGAIN"

CHECKPOINT = ".checkpoint"
DROPPED = ".dropped"
"""Suffixes of hidden folders: what is kept of an unfinished cell, and a checkpoint being removed."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that is created atomically: written under a temporary name and renamed once DONE, its last file, exists."""

    path: Path

    @property
    def is_done(self) -> bool:
        """Whether the folder is complete."""
        return (self.path / DONE).is_file()

    @property
    def failure(self) -> str | None:
        """The recorded reason for a failure, or None."""
        try:
            return (self.path / FAILED).read_text(encoding="utf-8").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None

    @property
    def is_settled(self) -> bool:
        """Whether its job has ended, with or without a result."""
        return self.is_done or self.failure is not None

    @property
    def has_failed(self) -> bool:
        """Whether the last attempt failed, or was a retry that never finished."""
        return self.failure is not None or (self.path / AGAIN).is_file()

    def reopen(self) -> None:
        """Mark a failed folder as not yet run. Its files are kept until the folder is replaced."""
        with explained(self.path):
            if (self.path / FAILED).is_file():
                (self.path / FAILED).rename(self.path / AGAIN)

    def read(self, name: str) -> Any:
        """Read a JSON file in the folder."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def remove(self) -> None:
        """Remove the folder, DONE first, so that an interrupted removal leaves an unfinished cell and not a partial result."""
        with explained(self.path):
            if self.path.exists():
                (self.path / DONE).unlink(missing_ok=True)
                shutil.rmtree(self.path)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield an empty temporary folder that replaces this folder, with DONE added, if the block succeeds.

        On an exception the temporary folder is removed and any old content is kept. After a SIGKILL the temporary folder
        remains until this folder is finished. A finished folder is never replaced: if a cluster runs a job twice
        concurrently, the first result is kept, and both are identical.

        Raises:
            UserError: if writing fails, also inside the block.
        """
        yield from self._replace(DONE, f"{datetime.now(UTC).isoformat()}\n")

    @contextlib.contextmanager
    def failing(self, reason: str) -> Iterator[Path]:
        """As `writing`, but record a failure: add FAILED with `reason` instead of DONE."""
        yield from self._replace(FAILED, f"{reason}\n")

    def _replace(self, marker: str, content: str) -> Iterator[Path]:
        was_done = self.is_done
        own = partial, aside = self._partial(this_process()), self._partial(f"{this_process()}.aside")
        try:
            with explained(self.path):
                _discard(own)
                partial.mkdir(parents=True)
                yield partial
                (partial / marker).write_text(content, encoding="utf-8")
                share_like(partial / marker)
                for file in partial.rglob("*"):
                    _flush(file)
                _flush(partial)
                if not self.is_done:
                    # listed before the rename: those of writers that start later find DONE and remove their own
                    others = list(self.path.parent.glob(self._partial("*").name)) if marker == DONE else []
                    with contextlib.suppress(FileNotFoundError):
                        self.path.rename(aside)
                    # a failed attempt, or, if another process has been faster, a result
                    (aside if (aside / DONE).is_file() else partial).rename(self.path)
                    _flush(self.path.parent)
                    _discard(others)
        except Exception:
            if was_done or not self.is_done:
                raise  # otherwise another process finished the folder meanwhile and removed our temporary one
        finally:
            _discard(own)

    def _partial(self, writer: str) -> Path:
        return self.path.with_name(f".{self.path.name}.{writer}.partial")


class Store:
    """A results folder: `cells/`, `artifacts/`, `suites/`, `reports/` and the MLflow database."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def cell(self, folder: str) -> Folder:
        """The folder of a cell."""
        return Folder(self.root / "cells" / folder)

    def folder(self, place: str) -> Folder:
        """The folder of a job, given as `cells/…` or `artifacts/<name>/<key>`."""
        return Folder(self.root / place)

    def cells(self) -> set[str]:
        """Names of the cells that have a folder, finished or not; one listing instead of thousands of look-ups."""
        folder = self.root / "cells"
        return {path.name for path in folder.glob("[!.]*")}

    def discard(self, folder: str) -> None:
        """Remove a cell and its checkpoint, so that it runs again from the start."""
        self.cell(folder).remove()
        self.drop_checkpoint(folder)

    def checkpoint(self, folder: str) -> Path:
        """Where an unfinished cell keeps what a later run can use: the blocks of a sequence, and what is scored."""
        return self.root / "cells" / f".{folder}{CHECKPOINT}"

    def scored(self, folder: str) -> Folder:
        """The files of an unfinished cell that only lacks its FLOPs."""
        return Folder(self.checkpoint(folder) / "scored")

    def drop_checkpoint(self, folder: str) -> None:
        """Remove a cell's checkpoint; renamed first, so that a partly removed checkpoint is never used."""
        kept = self.checkpoint(folder)
        with explained(kept), contextlib.suppress(FileNotFoundError):  # none, or another process has just renamed it
            _clear(kept.rename(kept.with_name(f"{kept.name}{DROPPED}")))

    def artifact(self, name: str, key: str) -> Folder:
        """The folder of an artifact with this name and content address."""
        return Folder(self.root / "artifacts" / name / key)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the exclusive write lock of this store on this machine.

        Raises:
            UserError: if another run holds the lock, or the store is read-only or cannot be created.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # some file systems say that the folder does not exist
            raise not_writable(self.root, error.errno or 0) from error
        with explained(self.root):
            if not self.root.stat().st_mode & 0o222:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self.root))
        with locked(
            self.root / ".lock",
            f"{self.root}: another run is writing to this store",
            fix=f"wait for it to end, or: {same_command(store=f'{self.root}-2')}",
        ):
            self._sweep()
            yield

    def _sweep(self) -> None:
        """Remove leftovers of killed runs that no run can use."""
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


def only_cell(store: Store, name: str, known: Collection[str]) -> str:
    """The folder of the one cell that a name matches.

    Args:
        store: where the cells are.
        name: cell id or folder name, a prefix of either, or the path of the folder.
        known: names of the folders of all cells that could be meant.

    Raises:
        UserError: if none or several match; names the runs of each match, such as `main_table.mini.data`.
    """
    path = Path(name)
    word = path.name if path.parent.name == "cells" else name
    found = sorted(folder for folder in known if _is_called(folder, word))
    if len(found) == 1:
        return found[0]
    if not known:
        problem = "no cell in this results folder" if store.root.is_dir() else "no such results folder"
        raise UserError(
            f"{store.root}: {problem}", fix=harness_command("run", "main_table", scale="mini", store=store.root)
        )
    if found:
        runs = manifests(store.root)
        listed = ", ".join(_with_runs(folder, runs) for folder in found[:5]) + ", …" * (len(found) > 5)
        raise UserError(
            f"'{name}' matches {len(found)} cells in {store.root}: {listed}",
            fix=f"the id at the end is enough: {same_command_with(name, _id(found[0]))}",
        )
    near = nearest(word, known)
    raise UserError(
        f"'{name}' matches 0 cells in {store.root}{f' (did you mean {near!r}?)' if near else ''}",
        fix=same_command_with(name, near) if near else f"ls {shlex.quote(str(store.root / 'cells'))}",
    )


def _with_runs(folder: str, runs: Iterable[Manifest]) -> str:
    """A cell's folder with the runs that it belongs to, which tell cells of the same name apart: their records, for example."""
    of_it = [run.name for run in runs if folder in run.cells]
    return f"{folder} ({', '.join(of_it)})" if of_it else folder


def _id(folder: str) -> str:
    """The cell id in the name of a cell's folder."""
    return folder.rpartition("-")[2]


def _is_called(folder: str, name: str) -> bool:
    """Whether a name matches a cell's folder: a prefix of the folder name, or a cell id or a prefix of it."""
    return folder.startswith(name) or _id(folder).startswith(name[: len(_id(folder))])


def _discard(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Remove a folder, which a process on another machine may be removing at the same time."""
    with explained(folder):
        while folder.exists():
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
