"""Atomic writes, file locks, and one-line messages for file system errors."""

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
_ELSEWHERE = "choose a writable folder with --store"
_FIXES = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE.replace("space", "quota"),
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.ENOTDIR: "choose another folder with --store",
    errno.EEXIST: "choose another folder with --store",
    errno.ENOLCK: "use --store to choose a folder on a file system that supports locks",
}


def cache_folder() -> Path:
    """The user's cache folder of this project (`$XDG_CACHE_HOME/editing-harness`); what is in it can be made again."""
    home = os.environ.get("XDG_CACHE_HOME", "") or "~/.cache"
    return Path(home).expanduser().absolute() / "editing-harness"


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True, default=plain) + "\n"
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically, under a temporary name that is then renamed; create missing parent folders."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{this_process()}.partial")
        try:
            partial.write_bytes(content)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)


def this_process() -> str:
    """Name of this process, unique among the machines that share a file system."""
    return f"{socket.gethostname()}-{os.getpid()}"


@contextlib.contextmanager
def locked(lock: Path, refusal: str, fix: str) -> Iterator[None]:
    """Hold a lock file during the block; the operating system releases it even if the process is killed.

    Args:
        lock: path of the lock file, in an existing folder. The holder is recorded next to it, in `<lock>.holder`.
        refusal: error message if another process holds the lock; the holder is appended.
        fix: suggested remedy.

    Raises:
        UserError: if another process holds the lock, or the file system does not support locks.
    """
    from filelock import FileLock, Timeout  # slow to import, compared with most commands

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
    """Turn a file system error about a path into a `UserError` with a remedy; other errors propagate."""
    try:
        yield
    except Exception as error:
        fix = _FIXES.get(number := _errno(error))
        if fix is None or _is_elsewhere(error, path):
            raise
        raise UserError(f"{path}: cannot write: {os.strerror(number)}", fix=fix) from error


@contextlib.contextmanager
def understood(path: Path) -> Iterator[None]:
    """Turn errors from reading a damaged or incompatible file into a `UserError`.

    Args:
        path: the file, or the folder of a cell.
    """
    try:
        yield
    except (KeyError, FileNotFoundError, ValueError) as error:  # ValueError: from JSON and Parquet
        found = f"missing key {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise UserError(
            f"{path}: damaged, or written by another version of the harness ({found})",
            fix=f"rm -r {path} and run the suite again",
        ) from error


def _is_elsewhere(error: Exception, path: Path) -> bool:
    """Whether an error concerns a file unrelated to this path, such as an input file."""
    name = getattr(error, "filename", None)
    return isinstance(name, str) and not (Path(name).is_relative_to(path.parent) or path.is_relative_to(name))


def _errno(error: Exception) -> int:
    """Error number of the operating system; Rust libraries such as safetensors only mention it in the message."""
    if isinstance(error, OSError):
        return error.errno or 0
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else 0
