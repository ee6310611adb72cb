"""Read one upstream file into records; an invalid record is reported in one line."""

import gc
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from harness import registry
from harness.data.formats import Format, Row, contents, recognise
from harness.data.ids import own_ids
from harness.errors import UserError
from harness.records import EditRecord


@dataclass(frozen=True, slots=True)
class Flaw:
    """An unusable record of an official file: its number in the file and the reason."""

    number: int
    reason: str


@dataclass(frozen=True)
class UpstreamFile:
    """The records of one file.

    Attributes:
        where: path of the file, or the name of the synthetic records.
        format: format of the file.
        rows: number of upstream records.
        records: usable records in file order; of records with the same prompt, only the first.
        numbers: 1-based position in the file of each of `records`.
        flaws: records that were skipped because they are unusable.
    """

    where: str
    format: Format
    rows: int
    records: tuple[EditRecord, ...]
    numbers: tuple[int, ...]
    flaws: tuple[Flaw, ...]

    @property
    def repeated(self) -> int:
        """Number of records skipped because an earlier one has the same prompt."""
        return self.rows - len(self.records) - len(self.flaws)


def read(path: Path) -> UpstreamFile:
    """Read all records of a file; cached per process until the file changes.

    Raises:
        UserError: if the format is unknown, the file is truncated, or a record has a missing, empty or wrongly typed
            field; the message gives path, record and field.
    """
    form = recognise(path)
    if form is None:
        known = ", ".join(known.title for known in registry.formats.all().values())
        raise UserError(
            f"{path}: not a known editing dataset (known formats: {known})", fix="python -m harness data list"
        )
    stat = path.stat()
    return _read(path, form.name, stat.st_mtime_ns, stat.st_size)


def from_rows(rows: Sequence[Mapping[str, Any]], form: Format, where: str) -> UpstreamFile:
    """Validate records given as upstream dictionaries, as `read` does for a file.

    Raises:
        UserError: as `read`.
    """
    return _parse(json.dumps(rows).encode(), form, where)


@lru_cache(maxsize=32)
def _read(path: Path, form_name: str, _mtime_ns: int, _size_bytes: int) -> UpstreamFile:
    form = registry.formats.get(form_name)
    content = contents(path)
    if form.parse_line is not None:
        return from_rows(_parse_lines(content, form, form.parse_line, path), form, str(path))
    return _parse(content, form, str(path))


def _parse(content: bytes, form: Format, where: str) -> UpstreamFile:
    try:
        with _no_collection():
            return _collect(form.rows.validate_json(content), form, where)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] != "json_invalid":
            raise _complaint(first, form, where) from None
        record = _complete_records(content) + 1
        raise _broken(f"{where}: record {record}: invalid or truncated JSON ({first['ctx']['error']})", form) from None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause the garbage collector, which would take a third of the reading time; records contain no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _collect(rows: Iterable[Row], form: Format, where: str) -> UpstreamFile:
    records: list[EditRecord] = []
    numbers: list[int] = []
    flaws: list[Flaw] = []
    prompts: set[str] = set()
    number = 0
    for number, row in enumerate(rows, start=1):
        record = row.record()
        if reason := _flaw(record):
            if not form.tolerates_flaws:
                raise _broken(f"{where}: record {number}: {reason}", form)
            flaws.append(Flaw(number, reason))
        elif record.prompt not in prompts:
            prompts.add(record.prompt)
            records.append(record)
            numbers.append(number)
    if not records:
        raise _broken(f"{where}: contains no usable record", form)
    return UpstreamFile(where, form, number, own_ids(records), tuple(numbers), tuple(flaws))


def _flaw(record: EditRecord) -> str | None:
    """Why a record with valid fields cannot be used as an edit, or None."""
    if not record.target_new:
        return "has an empty target"
    if record.subject not in record.prompt:
        return f"its subject {record.subject!r} does not occur in its prompt"
    return None


_SENTENCES = {
    "missing": "is missing",
    "string_too_short": "is empty",
    "too_short": "is an empty list",
    "string_type": "is not a string",
    "int_type": "is not an integer",
    "list_type": "is not a list",
    "dict_type": "is not a mapping",
    "dataclass_type": "is not a mapping",
}


def _complaint(error: ErrorDetails, form: Format, where: str) -> UserError:
    sentence = _SENTENCES.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        return _broken(f"{where}: {sentence}", form)
    number, *field = error["loc"]
    what = f"field '{'.'.join(map(str, field))}' " if field else ""
    return _broken(f"{where}: record {int(number) + 1}: {what}{sentence}", form)


def _broken(sentence: str, form: Format) -> UserError:
    return UserError(sentence, fix=registry.datasets.get(form.dataset).remedy)


def _complete_records(content: bytes) -> int:
    """Number of records of a broken JSON list before the error."""
    text = content.decode(errors="replace").lstrip()
    decoder, gap, position, count = json.JSONDecoder(), re.compile(r"[\s,]*"), 1, 0
    while True:
        start = gap.match(text, position)
        try:
            _, position = decoder.raw_decode(text, start.end() if start else position)
        except json.JSONDecodeError:
            return count
        count += 1


def _parse_lines(
    content: bytes, form: Format, parse_line: Callable[[str], Mapping[str, Any]], path: Path
) -> list[Mapping[str, Any]]:
    rows = []
    for number, line in enumerate(content.decode(errors="replace").rstrip("\r\n").split("\n"), start=1):
        try:
            rows.append(parse_line(line.rstrip("\r")))
        except ValueError as error:
            raise _broken(f"{path}: record {number}: {error}", form) from None
    return rows
