"""Check a file of records, and rewrite it in the harness's own format."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.commands import harness_command, list_around
from harness.data import conflicts
from harness.data.facts import Fact, Question, json_line
from harness.data.formats import contents, is_json, json_values, table_header
from harness.data.reading import UpstreamFile, read
from harness.errors import UserError, did_you_mean
from harness.files import write_bytes
from harness.plain_text import counted
from harness.records import PROBES, EditRecord, askable

SHOWN = 20
"""Maximum number of unusable records that a report names."""


@dataclass(frozen=True, slots=True)
class Report:
    """What is in a file.

    Attributes:
        file: the file.
        questions: number of questions, and of records that have any, by field of `EditRecord` and kind.
        problems: what the author of the file should change, one line each.
        remarks: what is unusual but usable.
    """

    file: UpstreamFile
    questions: dict[tuple[str, str], tuple[int, int]]
    problems: tuple[str, ...]
    remarks: tuple[str, ...]


def check(path: Path) -> Report:
    """Read and check a whole file of records in any registered format.

    Raises:
        UserError: if the file does not exist, its format is unknown, or it is damaged.
    """
    file = _read(path)
    return Report(file, _questions(file.records), (*_left_out(file), *_unknown_keys(path, file)), tuple(_remarks(file)))


def convert(path: Path, to: Path) -> UpstreamFile:
    """Write the usable records of a file in any registered format as JSON Lines of the format `facts`.

    Raises:
        UserError: as `check`, if the file has no usable record, or if `to` exists.
    """
    file = _read(path)
    if not file.records:
        raise UserError(f"{path}: no usable record", fix=f"{harness_command('data', 'check')} {path}")
    if to.exists():
        raise UserError(f"{to}: already exists", fix=f"mv {to} {to}.old")
    write_bytes(to, "".join(map(json_line, file.records)).encode())
    return file


def _read(path: Path) -> UpstreamFile:
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not a file", fix=harness_command("data", "list", data=path))
    if not path.is_file():
        raise UserError(f"{path}: no such file", fix=list_around(path))
    return read(path)


def _questions(records: tuple[EditRecord, ...]) -> dict[tuple[str, str], tuple[int, int]]:
    asked: Counter[tuple[str, str]] = Counter()
    having: Counter[tuple[str, str]] = Counter()
    for record in records:
        kinds = [("rephrases", "")] * len(record.rephrases)
        kinds += [(name, probe.kind) for name, probes in record.probes().items() for probe in probes]
        asked.update(kinds)
        having.update(set(kinds))
    order = ["rephrases", *PROBES]
    return {key: (asked[key], having[key]) for key in sorted(asked, key=lambda key: order.index(key[0]))}


def _left_out(file: UpstreamFile) -> Iterator[str]:
    for flaw in file.flaws[:SHOWN]:
        yield f"record {flaw.number}: {flaw.reason}"
    if len(file.flaws) > SHOWN:
        yield f"{counted(len(file.flaws) - SHOWN, 'more record')} cannot be used"


def _unknown_keys(path: Path, file: UpstreamFile) -> Iterator[str]:
    """Keys of the harness's own format that would be ignored; upstream formats have many of these."""
    if file.format.name != "facts":
        return
    found: Counter[tuple[str, str]] = Counter()
    text = contents(path).decode()
    for row in json_values(text) if is_json(text) else [dict.fromkeys(table_header(text))]:
        if isinstance(row, dict):
            found.update(("", key) for key in row.keys() - Fact.__dataclass_fields__.keys())
            probes = (probe for name in PROBES for probe in row.get(name) or () if isinstance(probe, dict))
            found.update(
                (" of a question", key)
                for probe in probes
                for key in probe.keys() - Question.__dataclass_fields__.keys()
            )
    for (where, key), count in sorted(found.items()):
        known = set(Question.__dataclass_fields__ if where else Fact.__dataclass_fields__)
        yield f"unknown key '{key}'{where}{did_you_mean(key, known)}: {counted(count, 'time')}"


def _remarks(file: UpstreamFile) -> Iterator[str]:
    if file.repeated:
        yield f"{counted(file.repeated, 'edit repeats', 'edits repeat')} an earlier prompt; only the first is used"
    ids = {record.id for record in file.records}
    if missing := sum(
        not ids.issuperset(probe.needs) for r in file.records for each in r.probes().values() for probe in each
    ):
        yield f"not asked: {counted(missing, 'question')} that depend on an edit that is not in the file"
    if without := sum(not record.subject for record in file.records):
        yield f"{counted(without, 'record')} without a subject, which some methods need"
    if contradictions := conflicts.count(askable(file.records)):
        yield f"if the whole file is edited: {contradictions}"
