"""Listings of data files, and records as readable text."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness import registry
from harness.commands import harness_command
from harness.data import conflicts
from harness.data.formats import NO_RECORDS, Foreign, Format
from harness.data.pools import is_dev
from harness.data.reading import UpstreamFile, read
from harness.data.sources import SYNTHETIC, find_files, upstream_files
from harness.errors import UserError, did_you_mean
from harness.records import PROBES, EditRecord, Probe
from harness.subjects import last_mention

TABLES = (".csv", ".tsv")
"""Suffixes of files that probably are records, whatever they contain."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """One file of a dataset.

    Attributes:
        dataset: name of the dataset.
        role: `edits` for the file that provides the edits, `pool` for files that only provide unrelated facts.
        format: title of the upstream format.
        rows: number of records in the file.
        usable: number of records that are valid and do not repeat an earlier prompt.
        test: number of usable records in the test split.
        dev: number of usable records in the dev split.
        path: path of the file.
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
    """Describe the files of one dataset or of all at a source (`synthetic` or a folder), files with edits first.

    Raises:
        UserError: if the folder has no file of the dataset, or a broken one.
    """
    return [
        _row(each, role, file)
        for each, by_role in _found(source, name).items()
        for role, files in by_role.items()
        for file in files
    ]


def contradictions(source: str, name: str | None = None) -> list[str]:
    """One line per dataset whose edited file contradicts itself: how often, by kind.

    Raises:
        UserError: as `describe`.
    """
    counted = {
        each: conflicts.count(file.records) for each, files in _found(source, name).items() for file in files["edits"]
    }
    return [f"{each}: {number}" for each, number in counted.items() if number]


def ignored(source: str) -> list[str]:
    """JSON files and tables of a folder that are in no known format, each with the reason."""
    if source == SYNTHETIC:
        return []
    found = upstream_files(Path(source)).items()
    return [
        f"{path}: {form.reason}"
        for path, form in found
        if isinstance(form, Foreign) and (form.reason != NO_RECORDS or path.suffix in TABLES)
    ]


def left_out(source: str, name: str | None = None) -> list[str]:
    """One line per file with unusable records: how many, and why."""
    found = [file for by_role in _found(source, name).values() for files in by_role.values() for file in files]
    return [text for file in found if (text := file.left_out())]


def show(name: str, source: str, record_id: str | None = None) -> str:
    """Format a record as text: the one with the given id, or the first of the edited file.

    Raises:
        UserError: if no file of the dataset contains the id.
    """
    found = find_files(name, source)
    if record_id is None:
        return _readable(name, found.edited, 0)
    for file in (found.edited, *found.others):
        for position, record in enumerate(file.records):
            if record.id == record_id:
                return _readable(name, file, position)
    near = did_you_mean(record_id, {record.id for record in found.edited.records})
    raise UserError(
        f"{source}: dataset '{name}' has no record '{record_id}'{near}",
        fix=harness_command("data", "show", name, data=source),
    )


def _found(source: str, name: str | None) -> dict[str, dict[str, list[UpstreamFile]]]:
    """The files of one dataset or of all, by dataset and by role; one with pools only has no file for `edits`."""
    found: dict[str, dict[str, list[UpstreamFile]]] = {}
    forms = {} if source == SYNTHETIC else upstream_files(Path(source))
    for each in [name] if name else _present(source):
        own = {path: form for path, form in forms.items() if isinstance(form, Format) and form.dataset == each}
        if own and not {form.name for form in own.values()}.intersection(registry.datasets.get(each).edited_formats):
            found[each] = {"edits": [], "pool": [read(path) for path in own]}
        else:
            files = find_files(each, source)
            found[each] = {"edits": [files.edited], "pool": list(files.others)}
    return found


def _present(source: str) -> list[str]:
    datasets = registry.datasets.all()
    if source == SYNTHETIC:
        return [name for name, info in datasets.items() if info.synthetic is not None]
    present = {form.dataset for form in upstream_files(Path(source)).values() if isinstance(form, Format)}
    if not present:
        foreign = ignored(source)
        raise UserError(
            f"{source}: no editing dataset in this folder{f' ({foreign[0]})' if foreign else ''}",
            fix="describe their format (docs/add-a-dataset.md) and pass it with --plugin FILE.py"
            if foreign
            else harness_command("data", "fetch", to=source),
        )
    return [name for name in datasets if name in present]


def _row(name: str, role: str, file: UpstreamFile) -> FileRow:
    dev = sum(is_dev(name, record.split_id) for record in file.records)
    usable = len(file.records)
    return FileRow(name, role, file.format.title, file.rows, usable, usable - dev, dev, file.where)


def _readable(name: str, file: UpstreamFile, position: int) -> str:
    record = file.records[position]
    split = "dev" if is_dev(name, record.split_id) else "test"
    lines = [
        f"{name} {record.id} ({split}; record {file.numbers[position]} of {file.where}, {file.format.title})",
        f"  prompt       {record.prompt}",
        f"  subject      {record.subject or '(none)'}{_place(record)}",
        f"  edit         {record.ground_truth} → {record.target_new}",
    ]
    if record.relation:
        lines.append(f"  relation     {record.relation}")
    for title, texts in _sections(record):
        lines += [f"  {title if not number else '':<12} {text}" for number, text in enumerate(texts)]
    return "\n".join(line.replace("\r", "").replace("\n", "⏎") for line in lines)


def _place(record: EditRecord) -> str:
    """Which mention of the subject is edited, where its characters occur more than once."""
    occurrences = record.prompt.count(record.subject) if record.subject else 0
    if occurrences < 2:
        return ""
    start, end = last_mention(record.prompt, record.subject)
    return f" (occurs {occurrences} times; characters {start + 1} to {end} are edited)"


def _sections(record: EditRecord) -> Iterator[tuple[str, list[str]]]:
    yield "rephrase", list(record.rephrases)
    for title, probes in record.probes().items():
        yield _TITLES[title], [_line(probe) for probe in probes]
    yield "generation", list(record.generation_prompts)


_TITLES = {name: {"forms": "form", "hops": "single hop", "attributes": "attribute"}.get(name, name) for name in PROBES}


def _line(probe: Probe) -> str:
    answers = " | ".join((probe.answer, *probe.aliases)) if probe.has_answer else "(no answer in the dataset)"
    needs = f", with {len(probe.needs)} edits" if len(probe.needs) > 1 else ""
    kind = f" ({probe.kind}{needs})" if probe.kind else ""
    return f"{probe.prompt} → {answers}{kind}"
