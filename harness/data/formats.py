"""Upstream file formats: registration and recognition.

A format is recognised by the fields of a file's first records, never by the file name: all fields of its signature must
occur. A file with some broken records is thus still recognised, and a file that shares a few field names is not.
"""

import codecs
import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar, cast

from pydantic import TypeAdapter

from harness import registry
from harness.errors import UserError
from harness.records import EditRecord

NO_RECORDS = "neither JSON nor a known table"
"""Reason for most foreign files of a folder, such as a README."""

_HEAD_BYTES = 1 << 16
_COLUMNS = 5
"""With this many commas, a first line is taken for a table's header and not for a sentence."""
_GZIP = b"\x1f\x8b"
_KEY = re.compile(r'"([^"\\]{1,40})"\s*:')
_GAP = re.compile(r"[\s,]*")


class Row(Protocol):
    """One upstream record, validated."""

    def record(self) -> EditRecord | tuple[EditRecord, ...]:
        """Convert to the harness's own record type, or to several records if it holds several edits.

        Raises:
            ValueError: if there is nothing to edit; the message completes "record 7 …".
        """
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
        signature: fields that all occur in the records of a file of this format, and no other format's; in a table they are
            the names of its columns.
        recognise: further predicate on the fields of the first records or, with `parse_line`, on the first lines of a
            text file.
        parse_line: parser for one line of a text file; raises a ValueError that describes a malformed line. None for
            files with named fields: a JSON list, a JSON record per line, or a table with a header (CSV).
    """

    name: str
    dataset: str
    title: str
    rows: TypeAdapter[Any]
    signature: frozenset[str]
    recognise: Callable[[Any], bool]
    parse_line: Callable[[str], Mapping[str, Any]] | None = None


def register_format(
    name: str,
    *,
    dataset: str,
    title: str,
    signature: Collection[str] | None = None,
    recognise: Callable[[Any], bool] = lambda found: True,
    parse_line: Callable[[str], Mapping[str, Any]] | None = None,
) -> Callable[[Schema], Schema]:
    """Class decorator: register a format by its record schema, a pydantic dataclass with a method `record`.

    If several formats recognise a file, the one with most fields in its signature wins; among equals the first: built-in
    formats come first, then plug-ins in order of registration.

    Args:
        name, dataset, title, recognise, parse_line: see `Format`.
        signature: see `Format`; by default the required fields of the schema.
    """

    def put(schema: Schema) -> Schema:
        rows = TypeAdapter(list[schema])  # type: ignore[valid-type]
        fields = schema.__pydantic_fields__.items()  # type: ignore[attr-defined]
        required = {field.alias or key for key, field in fields if field.is_required()}
        of_format = frozenset(required if signature is None else signature)
        registry.formats.add(
            name, Format(name, dataset, title, rows, of_format, recognise, parse_line), schema.__module__
        )
        return schema

    return put


@dataclass(frozen=True, slots=True)
class Foreign:
    """A file in no known format, and the reason as far as it is known."""

    reason: str


def recognise(path: Path) -> Format | Foreign:
    """Recognise the format of a file from its first 64 KiB; cached until the file changes."""
    stat = path.stat()
    return _recognise(path, stat.st_mtime_ns, stat.st_size, tuple(registry.formats))


@lru_cache(maxsize=4096)
def _recognise(path: Path, _mtime_ns: int, _size_bytes: int, _known: tuple[str, ...]) -> Format | Foreign:
    try:
        with _opened(path) as stream:
            head = _utf8(stream.read(_HEAD_BYTES)).decode(errors="replace")
    except (OSError, EOFError, zlib.error) as error:  # no permission, or damaged gzip data
        return Foreign(f"cannot be read ({error})")
    keys = _fields(head) if is_json(head) else set(table_header(head))
    lines = head.split("\n")[: -1 if "\n" in head else None]
    known = registry.formats.all().values()
    fitting = [
        each
        for each in known
        if (each.recognise(lines) if each.parse_line else each.signature <= keys and each.recognise(keys))
    ]
    if fitting:
        return max(fitting, key=lambda each: len(each.signature))
    if not is_json(head) and len(keys) < _COLUMNS:
        return Foreign(NO_RECORDS)
    nearest = max(known, key=lambda each: len(each.signature & keys) / max(len(each.signature), 1))
    missing = sorted(nearest.signature - keys)
    if not missing or len(missing) > len(nearest.signature) / 2:
        return Foreign("fields of no known format")
    return Foreign(f"no record has the field '{missing[0]}' of {nearest.title}")


def is_json(text: str) -> bool:
    """Whether a text starts like JSON."""
    return text.lstrip()[:1] in ("[", "{")


def table_header(text: str) -> list[str]:
    """Names of the columns if a text is a table with a header; otherwise arbitrary words or nothing."""
    return next(csv.reader(text.splitlines()[:1]), [])


def contents(path: Path) -> bytes:
    """Read a file as UTF-8 without a byte-order mark; gzip files are decompressed.

    Raises:
        UserError: for damaged gzip data.
    """
    try:
        with _opened(path) as stream:
            return _utf8(stream.read())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: {error}", fix=f"gzip -t {path}") from None


def json_values(text: str) -> Iterator[Any]:
    """Yield the records of a JSON list, or the values of a text that holds one after the other, such as JSON Lines.

    Raises:
        json.JSONDecodeError: at the end of the last complete record, if anything but the end of the text follows.
    """
    decoder = json.JSONDecoder()
    position = len(text) - len(text.lstrip())
    is_list = text[position : position + 1] == "["
    position += is_list
    while True:
        gap = _GAP.match(text, position)
        position = gap.end() if gap else position
        if position == len(text) or (is_list and text[position] == "]"):
            return
        value, position = decoder.raw_decode(text, position)
        yield value


def _fields(head: str) -> set[str]:
    """Field names of the complete records of a text, or all names in it if not even the first record is complete."""
    keys: set[str] = set()
    try:
        for value in json_values(head):
            keys |= value.keys() if isinstance(value, dict) else set()
    except json.JSONDecodeError:
        return keys or set(_KEY.findall(head))
    return keys


def _opened(path: Path) -> IO[bytes]:
    with path.open("rb") as stream:
        is_compressed = stream.read(2) == _GZIP
    return cast(IO[bytes], gzip.open(path)) if is_compressed else path.open("rb")


def _utf8(content: bytes) -> bytes:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace").encode()
    return content.removeprefix(codecs.BOM_UTF8)
