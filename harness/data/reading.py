"""Reading one upstream file into records, or saying in one line which record of it is wrong."""

import gc
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from harness.data.formats import FORMATS, Format, contents, recognise
from harness.data.schemas import flaw
from harness.errors import UserError
from harness.records import EditRecord


@dataclass(frozen=True, slots=True)
class Flaw:
    """A record that its official file holds and nobody can edit: its number in the file, and what it lacks."""

    number: int
    reason: str


@dataclass(frozen=True)
class UpstreamFile:
    """The records of one file.

    Attributes:
        where: path of the file, or the name of generated records.
        format: what it is.
        rows: number of upstream records.
        records: in file order, without flawed ones and without repeated prompts (the first stays).
        numbers: number in the file, from 1, of each of `records`.
        flaws: what was left out because it cannot be used.
    """

    where: str
    format: Format
    rows: int
    records: tuple[EditRecord, ...]
    numbers: tuple[int, ...]
    flaws: tuple[Flaw, ...]

    @property
    def repeated(self) -> int:
        """Records left out because an earlier one has the same prompt."""
        return self.rows - len(self.records) - len(self.flaws)


def read(path: Path) -> UpstreamFile:
    """All records of a file, read once per version of the file and process.

    Raises:
        UserError: when the file is of no known format, is cut off, or has a record with a missing, empty or wrongly
            typed field; the message names path, record and field.
    """
    form = recognise(path)
    if form is None:
        known = ", ".join(known.title for known in FORMATS.values())
        raise UserError(f"{path}: not an editing data file (known formats: {known})", fix="python -m harness data list")
    stat = path.stat()
    return _read(path, form.name, stat.st_mtime_ns, stat.st_size)


def from_rows(rows: Sequence[object], form: Format, where: str) -> UpstreamFile:
    """Records that are at hand as upstream's own dictionaries; checked as those of a file are.

    Raises:
        UserError: as `read`.
    """
    return _parse(json.dumps(rows).encode(), form, where)


@lru_cache(maxsize=32)
def _read(path: Path, form_name: str, _mtime_ns: int, _size_bytes: int) -> UpstreamFile:
    form = FORMATS[form_name]
    content = contents(path)
    if form.is_of is None:
        return from_rows(_table_rows(content, form, path), form, str(path))
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
        raise _broken(f"{where}: record {record}: broken or cut off ({first['ctx']['error']})", form) from None


@contextmanager
def _no_collection() -> Iterator[None]:
    """Records hold no cycles: the collector, woken by every few hundred of them, costs a third of the reading."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _collect(rows: Iterable["_Row"], form: Format, where: str) -> UpstreamFile:
    records: list[EditRecord] = []
    numbers: list[int] = []
    flaws: list[Flaw] = []
    prompts: set[str] = set()
    ids: dict[str, int] = {}
    number = 0
    for number, row in enumerate(rows, start=1):
        record = row.record()
        if reason := flaw(record):
            if not form.tolerates_flaws:
                raise _broken(f"{where}: record {number}: {reason}", form)
            flaws.append(Flaw(number, reason))
        elif record.prompt not in prompts:
            if (earlier := ids.setdefault(record.id, number)) != number:
                raise _broken(f"{where}: record {number}: case_id {record.id} is also that of record {earlier}", form)
            prompts.add(record.prompt)
            records.append(record)
            numbers.append(number)
    if not records:
        raise _broken(f"{where}: holds no usable record", form)
    return UpstreamFile(where, form, number, tuple(records), tuple(numbers), tuple(flaws))


class _Row(Protocol):
    def record(self) -> EditRecord: ...


_SENTENCES = {
    "missing": "is missing",
    "string_too_short": "is empty",
    "too_short": "is an empty list",
    "string_type": "is not a text",
    "int_type": "is not a whole number",
    "list_type": "is not a list",
    "dict_type": "is not a mapping",
    "dataclass_type": "is not a mapping",
    "string_pattern_mismatch": "does not hold {} exactly once",
}


def _complaint(error: ErrorDetails, form: Format, where: str) -> UserError:
    sentence = _SENTENCES.get(error["type"], error["msg"])
    if not error["loc"]:
        return _broken(f"{where}: {sentence}", form)
    number, *field = error["loc"]
    what = f"field '{'.'.join(map(str, field))}' " if field else ""
    return _broken(f"{where}: record {int(number) + 1}: {what}{sentence}", form)


def _broken(sentence: str, form: Format) -> UserError:
    return UserError(sentence, fix=f"python -m harness data fetch {form.dataset}")


def _complete_records(content: bytes) -> int:
    """How many records of a broken JSON list can be read before the fault."""
    text = content.decode(errors="replace").lstrip()
    decoder, gap, position, count = json.JSONDecoder(), re.compile(r"[\s,]*"), 1, 0
    while True:
        start = gap.match(text, position)
        try:
            _, position = decoder.raw_decode(text, start.end() if start else position)
        except json.JSONDecodeError:
            return count
        count += 1


def _table_rows(content: bytes, form: Format, path: Path) -> list[dict[str, str]]:
    rows = []
    for number, line in enumerate(content.decode(errors="replace").rstrip("\r\n").split("\n"), start=1):
        cells = line.rstrip("\r").split("\t")
        if len(cells) != 2:
            raise _broken(
                f"{path}: record {number}: a line of {len(cells)} columns, not of a question and an answer", form
            )
        rows.append({"src": cells[0], "alt": cells[1]})
    return rows
