"""Data as people read it: which files there are, and a record as text."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import registry
from harness.data.pools import is_dev
from harness.data.reading import UpstreamFile
from harness.data.sources import SYNTHETIC, find_files, upstream_files
from harness.errors import UserError, did_you_mean
from harness.records import EditRecord, Probe


@dataclass(frozen=True, slots=True)
class FileRow:
    """One file of a dataset.

    Attributes:
        dataset: name of the dataset.
        role: `edits` for the file whose records are edited, `pool` for those that only provide unrelated facts.
        format: title of the upstream format.
        rows: records in the file.
        usable: records without flaws and without repeated prompts.
        test: how many of them are in the test split.
        dev: how many are in the dev split.
        path: of the file.
    """

    dataset: str
    role: str
    format: str
    rows: int
    usable: int
    test: int
    dev: int
    path: str


def describe(source: str, name: str | None = None) -> list[FileRow]:
    """One row per file at a source (`synthetic` or a folder), of one dataset or of all, the edited file of each first.

    Raises:
        UserError: when the folder has no file of the dataset, or a broken one.
    """
    names = [name] if name else _present(source)
    rows = []
    for each in names:
        found = find_files(each, source)
        rows.append(_row(each, "edits", found.edited))
        rows += [_row(each, "pool", file) for file in found.others]
    return rows


def show(name: str, source: str, record_id: str | None = None) -> str:
    """A record in readable form: the one with the id, or the first of the edited file.

    Raises:
        UserError: when no file of the dataset has the id.
    """
    found = find_files(name, source)
    if record_id is None:
        return _readable(name, found.edited, 0)
    for file in (found.edited, *found.others):
        for position, record in enumerate(file.records):
            if record.id == record_id:
                return _readable(name, file, position)
    near = did_you_mean(record_id, {record.id for record in found.edited.records})
    raise UserError(f"{source}: no record '{record_id}' of {name}{near}", fix=f"python -m harness data show {name}")


def _present(source: str) -> list[str]:
    datasets = registry.datasets.all()
    if source == SYNTHETIC:
        return [name for name, info in datasets.items() if info.synthetic is not None]
    present = {form.dataset for form in upstream_files(Path(source)).values()}
    if not present:
        raise UserError(f"{source}: no editing data in this folder", fix="python -m harness data fetch")
    return [name for name in datasets if name in present]


def _row(name: str, role: str, file: UpstreamFile) -> FileRow:
    dev = sum(is_dev(name, record.id) for record in file.records)
    usable = len(file.records)
    return FileRow(name, role, file.format.title, file.rows, usable, usable - dev, dev, file.where)


def _readable(name: str, file: UpstreamFile, position: int) -> str:
    record = file.records[position]
    split = "dev" if is_dev(name, record.id) else "test"
    lines = [
        f"{name} {record.id} ({split}; record {file.numbers[position]} of {file.where}, {file.format.title})",
        f"  prompt       {record.prompt}",
        f"  subject      {record.subject or '(none)'}",
        f"  edit         {record.ground_truth} → {record.target_new}",
    ]
    if record.relation:
        lines.append(f"  relation     {record.relation}")
    for title, texts in _sections(record):
        lines += [f"  {title if not number else '':<12} {text}" for number, text in enumerate(texts)]
    return "\n".join(line.replace("\r", "").replace("\n", "⏎") for line in lines)


def _sections(record: EditRecord) -> Iterator[tuple[str, list[str]]]:
    yield "rephrase", list(record.rephrases)
    yield "locality", _probes(record.locality)
    yield "portability", _probes(record.portability)
    yield "attribute", _probes(record.attributes)
    yield "generation", list(record.generation_prompts)


def _probes(probes: tuple[Probe, ...]) -> list[str]:
    return [f"{probe.prompt} → {probe.answer}" for probe in probes]
