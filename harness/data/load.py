"""From the name of a dataset to the records of a cell: `resolve` when a suite is planned, `load` when a cell runs."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

from harness import registry
from harness.data.pools import belongs, draw
from harness.data.sources import SYNTHETIC, DatasetFiles, find_files
from harness.errors import UserError, did_you_mean
from harness.identity import digest, file_digest
from harness.records import DataRef, Dataset, EditRecord, Probe, Template

TEMPLATES: tuple[str, ...] = get_args(Template)

# The end of a sentence: its mark, what closes quotes and brackets, and space; a line break; or a mark with no space
# behind it, where two small letters stand before and a capital after ("season.Spike", but not "NU.nl" or "U.S.").
_BOUNDARY = re.compile(r"[.!?][\"'”’)\]]*\s+|\s*\n\s*|(?<=[^\W\d_A-Z]{2}[.!?])(?=[A-Z])")


def resolve(
    name: str,
    source: str,
    edits: int,
    split: str = "test",
    train: int = 0,
    unrelated: int = 0,
    strip_distractor: bool = False,
    template: str = "none",
) -> DataRef:
    """The reference to a selection of records, with its hash and the numbers of unrelated records that were found.

    The edits are the first `edits` records of the split in the order of the edited file. The pools come from records
    of the edited file that are not edited, then from the dataset's other files (records that name a subject first);
    never from the part of the edited file that `split` excludes.

    Args:
        name: of a registered dataset, such as `zsre`.
        source: `synthetic`, or a folder that is searched for files of the dataset.
        edits: number of scored records, at least 1.
        split: `test`, `dev` or `all`.
        train: number of unrelated records that methods may learn from, at most.
        unrelated: number of further unrelated records, at most; they are drawn first.
        strip_distractor: cut the sentence in front of CounterFact's paraphrases.
        template: `paper` wraps every prompt in the paper's prompt for base models.

    Raises:
        UserError: for an unknown name, no files, a broken file, or fewer edits than asked for.
    """
    asked = DataRef(name, source, edits, split, train, unrelated, strip_distractor, template)
    data = _select(asked)
    return replace(asked, train=len(data.train), unrelated=len(data.unrelated), sha256=_hash(data))


def load(ref: DataRef) -> Dataset:
    """The records that a reference names.

    Raises:
        UserError: as `resolve`, and when the files have changed since.
    """
    data = _select(ref)
    if (found := _hash(data)) != ref.sha256:
        raise UserError(
            f"{ref.source}: the records of {ref.name} have changed since they were planned "
            f"({found[:12]}, planned {ref.sha256[:12]}); restore the files or run the suite again",
            fix="python -m harness data list",
        )
    return data


def files(ref: DataRef) -> dict[str, str]:
    """The files that a selection is made from, with the sha256 of each; synthetic records count as one file."""
    found = find_files(ref.name, ref.source)
    if ref.source == SYNTHETIC:
        return {found.edited.where: digest(found.edited.records)}
    used = (found.edited, *found.others) if ref.train or ref.unrelated else (found.edited,)
    return {file.where: file_digest(Path(file.where)) for file in used}


def in_template(record: EditRecord, template: str) -> EditRecord:
    """The record with a template around every prompt, which takes the place of `{Input}`."""

    def wrap(prompt: str) -> str:
        return template.replace("{Input}", prompt)

    def wrap_all(probes: tuple[Probe, ...]) -> tuple[Probe, ...]:
        return tuple(Probe(wrap(probe.prompt), probe.answer) for probe in probes)

    return replace(
        record,
        prompt=wrap(record.prompt),
        rephrases=tuple(map(wrap, record.rephrases)),
        locality=wrap_all(record.locality),
        portability=wrap_all(record.portability),
        attributes=wrap_all(record.attributes),
        generation_prompts=tuple(map(wrap, record.generation_prompts)),
    )


def strip_distractor(paraphrase: str, subject: str) -> str:
    """The paraphrase from the last sentence boundary before its subject on.

    Only what stands before the subject's last occurrence is searched, so that periods of the subject itself
    ("John C. Breckinridge") and of the text after it ("the twin city of Edinburgh? It is") cut nothing. Without the
    subject, or without a boundary before it, the text stays as it is; headings that run into the sentence do too.
    """
    start = paraphrase.rfind(subject) if subject else -1
    if start < 0:
        return paraphrase
    cut = 0
    for boundary in _BOUNDARY.finditer(paraphrase[: start + 1]):
        if boundary.end() <= start:
            cut = boundary.end()
    return paraphrase[cut:]


def without_distractors(record: EditRecord) -> EditRecord:
    """The record with every rephrase cut."""
    return replace(record, rephrases=tuple(strip_distractor(text, record.subject) for text in record.rephrases))


def _select(ref: DataRef) -> Dataset:
    _check_options(ref)
    found = find_files(ref.name, ref.source)
    inside = [record for record in found.edited.records if belongs(ref.name, record.id, ref.split)]
    if len(inside) < ref.edits:
        of_split = "records" if ref.split == "all" else f"records in the {ref.split} split"
        raise UserError(
            f"{found.edited.where}: {len(inside)} {of_split}, {ref.edits} asked for", fix=f"edits: {len(inside)}"
        )
    edits, rest = inside[: ref.edits], inside[ref.edits :]
    excluded = [record for record in found.edited.records if not belongs(ref.name, record.id, ref.split)]
    train, unrelated = draw(edits, _tiers(found, rest, excluded), ref.train, ref.unrelated)
    shape = _shape(ref)
    return Dataset(ref, *(tuple(map(shape, group)) for group in (edits, train, unrelated)))


def _check_options(ref: DataRef) -> None:
    info = registry.datasets.get(ref.name)
    for option, value, least in (("edits", ref.edits, 1), ("train", ref.train, 0), ("unrelated", ref.unrelated, 0)):
        if value < least:
            raise UserError(f"{ref.name}: {option} is {value}, less than {least}", fix=f"{option}: {least}")
    if ref.template not in TEMPLATES:
        raise UserError(
            f"unknown template '{ref.template}'{did_you_mean(ref.template, TEMPLATES)}", fix="template: none"
        )
    if ref.template == "paper" and info.paper_template is None:
        raise UserError(f"the paper has no prompt template for dataset '{ref.name}'", fix="prompts: [none]")


def _tiers(found: DatasetFiles, rest: list[EditRecord], excluded: list[EditRecord]) -> list[list[EditRecord]]:
    """Pool candidates: the rest of the edited file, then other files' records with a subject, then those without.

    The unscored records of the edited file come first because only they have its form: flat CounterFact has neither
    paraphrases nor more than one neighbour, and MEND's ZsRE has no probe about the subject.
    """
    prompts = {record.prompt for record in excluded}
    ids = {record.id for record in excluded}
    others = [
        record
        for file in found.others
        for record in file.records
        if record.prompt not in prompts and record.id not in ids
    ]
    return [rest, [record for record in others if record.subject], [record for record in others if not record.subject]]


def _shape(ref: DataRef) -> Callable[[EditRecord], EditRecord]:
    """What is done to every chosen record: distractors cut, the template put around its prompts."""
    info = registry.datasets.get(ref.name)
    template = info.paper_template if ref.template == "paper" else None

    def shape(record: EditRecord) -> EditRecord:
        if ref.strip_distractor and info.has_distractors:
            record = without_distractors(record)
        return in_template(record, template) if template is not None else record

    return shape


def _hash(data: Dataset) -> str:
    return digest({"edits": data.edits, "train": data.train, "unrelated": data.unrelated})
