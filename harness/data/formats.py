"""Upstream file formats: registration and recognition.

A format is recognised by the field names at the start of a file, never by the file name. A file with a broken record is
thus still recognised, and the record is reported by its number.
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
        """Convert to the harness's own record type."""
        ...


Schema = TypeVar("Schema", bound=type)


@dataclass(frozen=True)
class Format:
    """An upstream format.

    Attributes:
        name: name used in `DatasetInfo.edited_formats`.
        dataset: dataset that the records belong to.
        title: display name in messages and listings.
        rows: validator for all records of a file.
        recognise: predicate on the field names at the start of a JSON file or, with `parse_line`, on the first lines of
            a text file.
        parse_line: parser for one line of a text file; raises a ValueError that describes a malformed line. None for
            JSON files, which hold a list of records.
        tolerates_flaws: whether records without a usable target are skipped, because the official files contain some.
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
    """Class decorator: register a format by its record schema, a pydantic dataclass with a method `record`.

    If several formats recognise a file, the first wins: built-in formats come first, then plug-ins in order of registration.

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
    """Recognise the format of a file from its first 64 KiB; None if it is not a known editing dataset."""
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
    """Read a file's bytes without a byte-order mark."""
    return path.read_bytes().removeprefix(_BYTE_ORDER_MARK)
