"""Canonical JSON of a value and its hash, the basis of every id in this project."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LABEL = {"role": "label"}
"""Metadata of a dataclass field that is only a name and not part of the identity."""
ADDED = {"role": "added"}
"""Metadata of a field that was added later: its default is left out of the identity, so that ids stay the same."""


def canonical_json(value: Any) -> str:
    """Serialise a value uniquely: sorted keys, no spaces, dataclasses as mappings, tuples as lists, no NaN.

    Raises:
        TypeError: for a value that is not JSON-like. Paths are rejected too, because a path does not identify content.
    """
    return _ENCODER.encode(value)


def digest(value: Any, length: int = 64) -> str:
    """First `length` hexadecimal digits of the sha256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def plain(value: Any) -> Any:
    """Convert dataclasses and mappings to dictionaries, for `json.dumps(default=...)`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no canonical form: {value!r}")


def _identifying(value: Any) -> Any:
    """As `plain`, without labels and without added fields at their default."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return plain(value)
    return {
        field.name: content
        for field in dataclasses.fields(value)
        for content in [getattr(value, field.name)]
        for role in [field.metadata.get("role")]
        if not (role == "label" or (role == "added" and content == field.default))
    }


_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_identifying
)
