"""Files that appear whole, and one clear line for whatever a file system refuses."""

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.identity import plain


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


@contextlib.contextmanager
def understood(path: Path) -> Iterator[None]:
    """Turn what reading finds of a file that is damaged, or of another version of the harness, into one line.

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
    """Whether a file was refused that has nothing to do with this folder, such as one that was to be read."""
    name = getattr(error, "filename", None)
    return isinstance(name, str) and not (Path(name).is_relative_to(path.parent) or path.is_relative_to(name))


def _errno(error: Exception) -> int:
    """The system's error number; libraries written in Rust, safetensors among them, give it in their text only."""
    if isinstance(error, OSError):
        return error.errno or 0
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else 0
