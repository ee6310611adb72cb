"""Read one upstream file into records; an invalid record is left out, with the reason."""

import csv
import gc
import io
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from harness import registry
from harness.commands import harness_command
from harness.data.formats import Foreign, Format, Row, contents, json_values, recognise
from harness.data.ids import own_ids
from harness.errors import UserError
from harness.records import EditRecord
from harness.subjects import last_mention

CHECKSUMS = "checksums.json"
"""File next to downloaded ones that lists their checksums."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """An unusable record: its number in the file and the reason."""

    number: int
    reason: str


@dataclass(frozen=True)
class UpstreamFile:
    """The records of one file.

    Attributes:
        where: path of the file, or the name of the synthetic records.
        format: format of the file.
        rows: number of upstream records.
        edits: number of edits in them; as many in most formats.
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
    edits: int

    @property
    def repeated(self) -> int:
        """Number of edits skipped because an earlier one has the same prompt."""
        return self.edits - len(self.records) - len(self.flaws)

    def left_out(self, shown: int = 3) -> str:
        """How many records are unusable and why, naming a few; empty if none is."""
        if not self.flaws:
            return ""
        named = "; ".join(f"record {flaw.number}: {flaw.reason}" for flaw in self.flaws[:shown])
        more = f"; and {len(self.flaws) - shown:,} more" if len(self.flaws) > shown else ""
        return f"{self.where}: {len(self.flaws):,} of {self.rows:,} records left out ({named}{more})"


def read(path: Path) -> UpstreamFile:
    """Read all records of a file; cached per process until the file changes.

    A record that lacks a required field, or has an empty or wrongly typed one, is left out and listed in `flaws`.

    Raises:
        UserError: if the format is unknown or the file is truncated; the message gives path and record.
    """
    form = recognise(path)
    if isinstance(form, Foreign):
        known = ", ".join(known.title for known in registry.formats.all().values())
        raise UserError(
            f"{path}: not a known editing dataset: {form.reason} (known formats: {known})",
            fix=harness_command("data", "list", data=path.parent),
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
        return _parse_lines(content, form, form.parse_line, path)
    return _parse(content, form, str(path))


def _parse(content: bytes, form: Format, where: str) -> UpstreamFile:
    """Validate all records of a JSON file; those with a wrong field are left out, but damaged JSON is refused."""
    rows: list[Any] = []
    if not content.lstrip().startswith((b"[", b"{")):
        return _parse_table(_text(content, where), form, where)
    try:
        with _no_collection():
            if content.lstrip().startswith(b"["):
                return _collect(enumerate(form.rows.validate_json(content), start=1), form, where)
    except ValidationError:
        pass  # whatever it was is found below, record by record
    try:
        for row in json_values(_text(content, where)):
            rows.append(row)
    except json.JSONDecodeError as error:
        reason = f"{where}: record {len(rows) + 1}: invalid or truncated JSON ({error.msg})"
        raise UserError(reason, fix=_repair(where, form)) from None
    return _validate(enumerate(rows, start=1), form, where, [])


def _validate(rows: Iterable[tuple[int, Any]], form: Format, where: str, flaws: list[Flaw]) -> UpstreamFile:
    """Leave out the records with a wrong field, given numbered from 1."""
    valid: list[tuple[int, Row]] = []
    for number, row in rows:
        try:
            valid += [(number, each) for each in form.rows.validate_json(json.dumps([row]))]
        except ValidationError as error:
            flaws.append(Flaw(number, _complaint(error.errors(include_url=False, include_input=False)[0])))
    return _collect(valid, form, where, flaws)


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


def _collect(rows: Iterable[tuple[int, Row]], form: Format, where: str, flaws: Sequence[Flaw] = ()) -> UpstreamFile:
    """Convert valid records, given with their numbers; `flaws` are those that were left out before."""
    records: list[EditRecord] = []
    numbers: list[int] = []
    found = list(flaws)
    place: dict[str, int] = {}
    last, edits = max((flaw.number for flaw in flaws), default=0), len(flaws)
    for number, row in rows:
        last = max(last, number)
        try:
            made = row.record()
        except ValueError as error:
            found.append(Flaw(number, str(error)))
            edits += 1
            continue
        for record in made if isinstance(made, tuple) else (made,):
            edits += 1
            if reason := _flaw(record):
                found.append(Flaw(number, reason))
            elif record.prompt not in place:
                place[record.prompt] = len(records)
                records.append(record)
                numbers.append(number)
            else:
                first = place[record.prompt]
                records[first] = _with_joint_questions(records[first], record)
    found.sort(key=lambda flaw: flaw.number)
    return UpstreamFile(where, form, last, own_ids(records), tuple(numbers), tuple(found), edits)


def _with_joint_questions(first: EditRecord, repeated: EditRecord) -> EditRecord:
    """Keep what a repetition of an edit asks about it together with other edits; all else is known from the first."""
    if repeated.target_new != first.target_new:
        return first
    joint: dict[str, Any] = {
        name: (*known, *new)
        for (name, known), probes in zip(first.probes().items(), repeated.probes().values(), strict=True)
        if (new := [probe for probe in probes if probe.needs and probe not in known])
    }
    return replace(first, **joint) if joint else first


def _flaw(record: EditRecord) -> str | None:
    """Why a record with valid fields cannot be used as an edit, or None."""
    if not record.target_new:
        return "has an empty target"
    if record.subject:
        try:
            last_mention(record.prompt, record.subject)
        except ValueError as error:
            return str(error)
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


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        file, converted = shlex.quote(where), shlex.quote(f"{where}.utf8")
        raise UserError(
            f"{where}: byte {error.start + 1:,} is not UTF-8; perhaps the file is in Windows-1252",
            fix=f"gunzip {file}"
            if where.endswith(".gz")
            else f"iconv -f WINDOWS-1252 -t UTF-8 {file} -o {converted} && mv {converted} {file}",
        ) from None


def _complaint(error: ErrorDetails) -> str:
    field = error["loc"][1:]
    sentence = _SENTENCES.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    return f"field '{'.'.join(map(str, field))}' {sentence}" if field else sentence


def _repair(where: str, form: Format) -> str:
    """How to repair a damaged file: fetch it again if it was fetched, otherwise look at the place."""
    path = Path(where)
    if (path.parent / CHECKSUMS).is_file() and path.name in (path.parent / CHECKSUMS).read_text(encoding="utf-8"):
        return harness_command("data", "fetch", form.dataset, to=path.parent.parent)
    if path.suffix == ".csv":
        return f"tail -n 3 {path}"
    return f"python -m json.tool {'--json-lines ' if path.suffix == '.jsonl' else ''}{path} /dev/null"


def _parse_table(text: str, form: Format, where: str) -> UpstreamFile:
    """Read a table with a header; empty entries are missing fields."""
    lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, flaws = [], []
    header = next(lines, [])
    try:
        for number, entries in enumerate(filter(None, lines), start=1):
            if len(entries) == len(header):
                rows.append(
                    (number, {name: entry for name, entry in zip(header, entries, strict=True) if entry.strip()})
                )
            else:
                flaws.append(Flaw(number, f"has {len(entries)} columns, but the header {len(header)}"))
    except csv.Error as error:
        raise UserError(
            f"{where}: record {len(rows) + len(flaws) + 1}: invalid or truncated table ({error})",
            fix=_repair(where, form),
        ) from None
    return _validate(rows, form, where, flaws)


def _parse_lines(
    content: bytes, form: Format, parse_line: Callable[[str], Mapping[str, Any]], path: Path
) -> UpstreamFile:
    rows, flaws = [], []
    for number, line in enumerate(_text(content, str(path)).rstrip("\r\n").split("\n"), start=1):
        try:
            rows.append((number, parse_line(line.rstrip("\r"))))
        except ValueError as error:
            flaws.append(Flaw(number, str(error)))
    return _validate(rows, form, str(path), flaws)
