"""What the command line prints about data: which files there are, and a record in readable form."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.data.catalogue import DATASETS
from harness.data.corpus import SYNTHETIC, Corpus, find, upstream_files
from harness.data.pools import is_dev
from harness.data.reading import UpstreamFile
from harness.errors import UserError, did_you_mean
from harness.records import EditRecord, Probe


@dataclass(frozen=True, slots=True)
class FileRow:
    """One file of a data set.

    Attributes:
        dataset: name in the catalogue.
        role: `edits` for the file whose records are edited, `pool` for those that only give unrelated facts.
        format: title of the upstream format.
        rows: records in the file.
        usable: records without repeated prompts and without flawed ones.
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
    """One row per file at a source (`synthetic` or a folder), of one data set or of all, the edited file of each first.

    Raises:
        UserError: when the folder has no file of the data set, or a broken one.
    """
    names = [name] if name else _present(source)
    rows = []
    for each in names:
        corpus = find(each, source)
        rows.append(_row(each, "edits", corpus.edited))
        rows += [_row(each, "pool", file) for file in corpus.others]
    return rows


def show(name: str, source: str, record_id: str | None = None) -> str:
    """A record in readable form: the one with the id, or the first of the edited file.

    Raises:
        UserError: when no file of the data set has the id.
    """
    corpus = find(name, source)
    if record_id is None:
        return _readable(name, corpus.edited, 0)
    for file in _all_files(corpus):
        for position, record in enumerate(file.records):
            if record.id == record_id:
                return _readable(name, file, position)
    near = did_you_mean(record_id, {record.id for record in corpus.edited.records})
    raise UserError(f"{source}: no record '{record_id}' of {name}{near}", fix=f"python -m harness data show {name}")


def _present(source: str) -> list[str]:
    if source == SYNTHETIC:
        return list(DATASETS)
    present = {form.dataset for form in upstream_files(Path(source)).values()}
    if not present:
        raise UserError(f"{source}: no editing data in this folder", fix="python -m harness data fetch")
    return [name for name in DATASETS if name in present]


def _row(name: str, role: str, file: UpstreamFile) -> FileRow:
    dev = sum(is_dev(name, record.id) for record in file.records)
    usable = len(file.records)
    return FileRow(name, role, file.format.title, file.rows, usable, usable - dev, dev, file.where)


def _all_files(corpus: Corpus) -> Iterator[UpstreamFile]:
    yield corpus.edited
    yield from corpus.others


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
