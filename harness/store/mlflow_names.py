"""Names that MLflow accepts, for metrics and params with arbitrary characters in their names.

A valid name is kept. Any other becomes readable, with a hash of the original, so that two names never become one.
"""

import posixpath
import re
from collections.abc import Iterable, Mapping
from typing import Any

from harness.identity import digest

LONGEST = 240
"""Characters of the longest name: MLflow accepts 250, also for a tag that says what a name was before."""

_VALID = re.compile(r"[/\w.\- ]+", re.ASCII)
_INVALID = re.compile(r"[^\w.\-]+", re.ASCII)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[tuple[str, ...], Any]:
    """The leaves of nested mappings by their path; lists are leaves."""
    leaves: dict[tuple[str, ...], Any] = {}
    pending: list[tuple[tuple[str, ...], Any]] = [((prefix,) if prefix else (), values)]
    while pending:
        path, value = pending.pop(0)
        if isinstance(value, Mapping):
            pending += [((*path, str(key)), inner) for key, inner in value.items()]
        else:
            leaves[path] = value
    return leaves


def valid_names(paths: Iterable[tuple[str, ...]], separator: str) -> dict[tuple[str, ...], str]:
    """A name for each path: its parts joined, or if MLflow refuses that or it is taken, a readable name with a hash."""
    names: dict[tuple[str, ...], str] = {}
    taken: set[str] = set()
    for path in paths:
        name = separator.join(path)
        if name in taken or not is_valid(name):
            mark = digest(list(path), 8)
            parts = (_INVALID.sub("_", part.replace("+", "plus")).strip("_.") or "_" for part in path)
            name = f"{separator.join(parts)[: LONGEST - len(mark) - 1]}.{mark}"
        names[path] = name
        taken.add(name)
    return names


def is_valid(name: str) -> bool:
    """Whether every MLflow server takes this name: it must also name a file below a folder."""
    normal = posixpath.normpath(name)
    is_path = normal == name and normal != "." and not normal.startswith(("..", "/"))
    return len(name) <= LONGEST and is_path and _VALID.fullmatch(name) is not None
