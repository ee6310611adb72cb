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

from harness.commands import rerun, same_command, with_another_store
from harness.errors import UserError
from harness.identity import plain

_SPACE = (errno.ENOSPC, errno.EDQUOT)
_ELSEWHERE = (
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENOLCK,
)
"""Error numbers of a file system that do not indicate a bug: it is full, or cannot be written here."""


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


def share_like(file: Path) -> None:
    """Give all files in the folder of a file the file's permissions: safetensors makes its files readable by their owner only."""
    mode = file.stat().st_mode & 0o777
    for other in file.parent.rglob("*"):
        if other.is_file() and not other.is_symlink():
            other.chmod(mode)


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
                refusal = f"{refusal} ({holder.read_text(encoding='utf-8').strip()})"
            raise UserError(refusal, fix=fix) from None
    try:
        with explained(lock.parent):
            holder.write_text(
                f"pid {os.getpid()} on {socket.gethostname()} since {datetime.now():%Y-%m-%d %H:%M:%S}\n",
                encoding="utf-8",
            )
        yield
    finally:
        held.release()


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn a file system error about a path into a `UserError` with a remedy; other errors propagate."""
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number not in (*_SPACE, *_ELSEWHERE) or _is_elsewhere(error, path):
            raise
        raise not_writable(path, number) from error


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
            fix=rerun(path),
        ) from error


def not_writable(path: Path, number: int) -> UserError:
    """The error for a store that cannot be written, with the command that continues elsewhere."""
    if number in _SPACE:
        fix = f"free some space and run the same command again, finished cells are kept: {same_command()}"
    else:
        fix = with_another_store(path)
    return UserError(f"{path}: cannot write: {os.strerror(number)}", fix=fix)


def is_full(error: OSError) -> bool:
    """Whether a file system has no space left, which can happen to any write."""
    return error.errno in _SPACE


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
