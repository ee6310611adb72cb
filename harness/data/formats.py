"""Upstream formats: how one is registered, and how a file's format is recognised.

A format is recognised by the field names in the head of a file, never by the file's name, so that a broken record is
still known for what it should have been and is reported with its number.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter

from harness import registry
from harness.records import EditRecord

_HEAD_BYTES = 1 << 16
_KEY = re.compile(rb'"([^"\\]{1,40})"\s*:')
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Row(Protocol):
    """One upstream record, validated."""

    def record(self) -> EditRecord:
        """The same as this project has it."""
        ...


Schema = TypeVar("Schema", bound=type)


@dataclass(frozen=True)
class Format:
    """An upstream format.

    Attributes:
        name: as in `DatasetInfo.edited_formats`.
        dataset: the dataset whose records it holds.
        title: as in messages and listings.
        rows: validates all records of a file.
        recognise: whether the field names in the head of a JSON file are this format's; with `parse_line`, whether the
            first lines of a text file are.
        parse_line: makes one record of one line of a text file, or raises a ValueError that says what the line is; None
            for JSON, a list of records.
        tolerates_flaws: official files of the format hold a few records without a usable target; they are left out.
    """

    name: str
    dataset: str
    title: str
    rows: TypeAdapter[Any]
    recognise: Callable[[Any], bool]
    parse_line: Callable[[str], Mapping[str, Any]] | None = None
    tolerates_flaws: bool = False


def register_format(
    name: str,
    *,
    dataset: str,
    title: str,
    recognise: Callable[[Any], bool],
    parse_line: Callable[[str], Mapping[str, Any]] | None = None,
    tolerates_flaws: bool = False,
) -> Callable[[Schema], Schema]:
    """Class decorator: add a format by the schema of its records, a pydantic dataclass with a method `record`.

    Of several formats that recognise a file the first one counts: this project's own, then as they were registered.

    Args:
        name, dataset, title, recognise, parse_line, tolerates_flaws: see `Format`.
    """

    def put(schema: Schema) -> Schema:
        rows = TypeAdapter(list[schema])  # type: ignore[valid-type]
        added = Format(name, dataset, title, rows, recognise, parse_line, tolerates_flaws)
        registry.formats.add(name, added, schema.__module__)
        return schema

    return put


def recognise(path: Path) -> Format | None:
    """The format of a file by its first 64 KiB, or None for a file that holds no editing data known here."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES).removeprefix(_BYTE_ORDER_MARK)
    is_json = head.lstrip()[:1] in (b"[", b"{")
    keys = {key.decode(errors="replace") for key in _KEY.findall(head)} if is_json else set()
    lines = head.decode(errors="replace").split("\n")[: -1 if b"\n" in head else None]
    for known in registry.formats.all().values():
        if known.recognise(lines) if known.parse_line else is_json and known.recognise(keys):
            return known
    return None


def contents(path: Path) -> bytes:
    """A file's bytes without a byte-order mark."""
    return path.read_bytes().removeprefix(_BYTE_ORDER_MARK)
