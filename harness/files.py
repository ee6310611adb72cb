"""Files that are written completely or not at all, locks, and one clear line for whatever a file system refuses."""

import contextlib
import errno
import json
import os
import re
import socket
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.identity import plain

_SPACE = "free some space and run the same command again; finished cells are kept"
_ELSEWHERE = "choose a folder that can be written with --store"
_FIXES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE.replace("space", "quota"),
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.ENOTDIR: "choose another folder with --store",
    errno.EEXIST: "choose another folder with --store",
    errno.ENOLCK: "choose a folder on a file system with locks with --store",
}


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file under a temporary name and rename it."""
    text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True, default=plain) + "\n"
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file, and the folders above it, under a temporary name and rename it."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{this_process()}.partial")
        try:
            partial.write_bytes(content)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)


def this_process() -> str:
    """Name of this process among all that share a file system."""
    return f"{socket.gethostname()}-{os.getpid()}"


@contextlib.contextmanager
def locked(lock: Path, refusal: str, fix: str) -> Iterator[None]:
    """Hold a lock file while the block runs; the system releases it even if the process is killed.

    Args:
        lock: the file, in a folder that exists. Who holds it is written next to it, in `<lock>.holder`.
        refusal: what the error says if another process holds it; who does is added.
        fix: what to do then.

    Raises:
        UserError: if another process holds it, or the file system has no locks.
    """
    from filelock import FileLock, Timeout  # slower to import than most commands are to run

    holder = lock.with_name(f"{lock.name}.holder")
    held = FileLock(lock)
    with explained(lock.parent):
        try:
            held.acquire(timeout=0)
        except Timeout:
            with contextlib.suppress(FileNotFoundError):
                refusal = f"{refusal} ({holder.read_text().strip()})"
            raise UserError(refusal, fix=fix) from None
    try:
        with explained(lock.parent):
            holder.write_text(f"pid {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n")
        yield
    finally:
        held.release()


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an error of the file system about a path into one line with a remedy; other errors pass."""
    try:
        yield
    except Exception as error:
        fix = _FIXES.get(number := _errno(error))
        if fix is None or _is_elsewhere(error, path):
            raise
        raise UserError(f"{path}: cannot write: {os.strerror(number)}", fix=fix) from error


@contextlib.contextmanager
def understood(path: Path) -> Iterator[None]:
    """Turn an error about the content of a file, damaged or of another version of the harness, into one line.

    Args:
        path: of the file, or of the folder of a cell.
    """
    try:
        yield
    except (KeyError, FileNotFoundError, ValueError) as error:  # ValueError: of JSON and of Parquet
        found = f"no {error} in it" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(
            f"{path}: damaged, or written by another version of the harness ({found})",
            fix=f"rm -r {path} and run the suite again",
        ) from error


def _is_elsewhere(error: Exception, path: Path) -> bool:
    """Whether the refused file has nothing to do with this path, such as one that was to be read."""
    name = getattr(error, "filename", None)
    return isinstance(name, str) and not (Path(name).is_relative_to(path.parent) or path.is_relative_to(name))


def _errno(error: Exception) -> int:
    """The system's error number; libraries written in Rust, such as safetensors, only have it in their text."""
    if isinstance(error, OSError):
        return error.errno or 0
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else 0
