"""sha256 of large files, computed once: the user's cache folder keeps it until the file changes."""

import contextlib
import json
import re
import sys
import time
from pathlib import Path

from harness.errors import UserError
from harness.files import cache_folder, write_json
from harness.identity import digest, file_digest

KEPT_BYTES = 1 << 24
"""Hashes of files of at least this size are kept on disk; smaller files are read faster than an entry is found."""
SHOWN_BYTES = 1 << 30
"""Files of at least this size are announced before they are read."""
_FRESH_S = 0.1
"""A file that was just written may change again with the same times, so its hash is not kept."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_Stamp = tuple[int, int, int, int]
_known: dict[tuple[Path, _Stamp], str] = {}


def content_hash(path: Path) -> str:
    """sha256 of a file's bytes, of all of them.

    It is read again only if its path, size, times or inode change; large files in the hub's cache not at all, because their
    names are their sha256. A cache folder that is unwritable or damaged costs time, never correctness.
    """
    path = path.resolve()
    stamp = _stamp(path)
    if stamp[0] >= KEPT_BYTES and _is_blob(path):
        return path.name
    if (path, stamp) in _known:
        return _known[path, stamp]
    is_fresh = abs(time.time() - path.stat().st_mtime) < _FRESH_S
    is_kept = stamp[0] >= KEPT_BYTES and not is_fresh
    if not (is_kept and (found := _read(path, stamp))):
        if stamp[0] >= SHOWN_BYTES:
            print(f"hashing {path} ({stamp[0] / 1e9:.1f} GB), once", file=sys.stderr, flush=True)
        found = file_digest(path)
        if is_kept and _stamp(path) == stamp:
            _write(path, stamp, found)
    if not is_fresh:
        _known[path, stamp] = found
    return found


def _is_blob(path: Path) -> bool:
    """Whether a file is in the hub's cache under its own sha256, as files stored with LFS are."""
    folder = path.parent
    return folder.name == "blobs" and folder.parent.name.startswith("models--") and bool(_SHA256.fullmatch(path.name))


def _stamp(path: Path) -> _Stamp:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _entry(path: Path) -> Path:
    return cache_folder() / "sha256" / f"{digest(str(path), 32)}.json"


def _read(path: Path, stamp: _Stamp) -> str:
    """The kept hash of a file that has not changed since; empty if there is none."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        kept = json.loads(_entry(path).read_text(encoding="utf-8"))
        if isinstance(kept, dict) and (kept.get("path"), kept.get("stamp")) == (str(path), list(stamp)):
            found = str(kept.get("sha256"))
            return found if _SHA256.fullmatch(found) else ""
    return ""


def _write(path: Path, stamp: _Stamp, sha256: str) -> None:
    with contextlib.suppress(OSError, RuntimeError, UserError):
        write_json(_entry(path), {"path": str(path), "stamp": stamp, "sha256": sha256})
