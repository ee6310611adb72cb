"""Select the records of a cell: `select` or `resolve` when a suite is planned, `load` when a cell runs."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import get_args

from harness import registry
from harness.commands import harness_command
from harness.data.conflicts import consistent
from harness.data.pools import belongs, draw
from harness.data.sources import SYNTHETIC, DatasetFiles, find_files
from harness.errors import UserError, did_you_mean
from harness.identity import digest, file_digest
from harness.plain_text import counted
from harness.records import Conflict, DataRef, Dataset, EditRecord, Template, askable
from harness.subjects import Mention, last_mention

TEMPLATES: tuple[str, ...] = get_args(Template)
CONFLICTS: tuple[str, ...] = get_args(Conflict)

# End of a sentence: punctuation, closing quotes or brackets, and whitespace; a line break; or punctuation without a space
# between two lower-case letters and a capital ("season.Spike", but not "NU.nl" or "U.S.").
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
    conflicts: str = "keep",
    without: tuple[str, ...] = (),
    file: str = "",
    relations: str = "all",
) -> DataRef:
    """Select records and return a reference to them, with their hash and the actual pool sizes.

    The edits are the first `edits` records of the split, in file order. The pools are drawn from the unedited records of
    the same file, then from the dataset's other files (records with a subject first), and never from the records that
    `split` excludes.

    Args:
        name: name of a registered dataset, such as `zsre`.
        source: `synthetic`, or a folder to search for files of the dataset.
        edits: number of scored records, at least 1.
        split: `test`, `dev` or `all`.
        train: maximum number of unrelated records that methods may learn from.
        unrelated: maximum number of further unrelated records; these are drawn first.
        strip_distractor: remove the unrelated sentence before CounterFact's paraphrases.
        template: `paper` wraps every prompt in the paper's template for base models.
        conflicts: `drop` leaves out records that contradict themselves or an earlier edit (`harness.data.conflicts`);
            the next records of the split take their places.
        without: ids of records to leave out, in the same way.
        file: the file of the folder that provides the edits; empty to choose one.
        relations: `seen` or `unseen` take edits of a fixed half of the relations only, and pools of the same or of the other
            half.

    Raises:
        UserError: for an unknown name, missing files, a broken file, or fewer records than requested edits.
    """
    return select(
        DataRef(
            *(name, source, edits, split, train, unrelated, strip_distractor, template),
            conflicts=conflicts,
            without=without,
            file=file,
            relations=relations,
        )
    ).ref


def select(asked: DataRef) -> Dataset:
    """Select records as `resolve` does and return them; their reference is complete.

    Raises:
        UserError: as `resolve`.
    """
    data = _select(asked)
    examples = sum(record.is_example for record in data.train)
    ref = replace(
        asked,
        train=len(data.train),
        unrelated=len(data.unrelated),
        examples=examples,
        without_subject=sum(not record.subject for record in data.edits),
        sha256=_hash(data),
    )
    return replace(data, ref=ref)


def load(ref: DataRef) -> Dataset:
    """Load the records of a reference.

    Raises:
        UserError: as `resolve`, and if the files have changed since then.
    """
    data = _select(ref)
    if (found := _hash(data)) != ref.sha256:
        raise UserError(
            f"{ref.source}: the records of {ref.name} have changed since they were planned "
            f"({found[:12]}, planned {ref.sha256[:12]}); restore the files or run the suite again",
            fix=harness_command("data", "list", data=ref.source),
        )
    return data


def files(ref: DataRef) -> dict[str, str]:
    """Source files of a selection with their sha256; synthetic records count as one file."""
    found = find_files(ref.name, ref.source, ref.file)
    if ref.source == SYNTHETIC:
        return {found.edited.where: digest(found.edited.records)}
    used = (found.edited, *found.others) if ref.train or ref.unrelated else (found.edited,)
    return {file.where: file_digest(Path(file.where)) for file in used}


def in_template(record: EditRecord, template: str) -> EditRecord:
    """Wrap every prompt of a record in a template by replacing `{Input}`."""

    def wrap(prompt: str) -> str:
        return template.replace("{Input}", prompt)

    return replace(
        record.with_probes(lambda probe: replace(probe, prompt=wrap(probe.prompt))),
        prompt=wrap(record.prompt),
        rephrases=tuple(map(wrap, record.rephrases)),
        generation_prompts=tuple(map(wrap, record.generation_prompts)),
    )


def strip_distractor(paraphrase: str, subject: str) -> str:
    """Drop everything before the last sentence boundary that precedes the subject.

    Only the text before the subject's last mention is searched, so that punctuation in the subject itself
    ("John C. Breckinridge") or after it ("the twin city of Edinburgh? It is") is ignored. If the subject or such a
    boundary is missing, the text is returned unchanged; headings that run into the sentence are kept as well.
    """
    try:
        start = last_mention(paraphrase, subject).start
    except ValueError:
        return paraphrase
    cut = 0
    for boundary in _BOUNDARY.finditer(paraphrase[: start + 1]):
        if boundary.end() <= start:
            cut = boundary.end()
    return paraphrase[cut:]


def without_distractors(record: EditRecord) -> EditRecord:
    """Strip the distractor from every rephrase of a record."""
    return replace(record, rephrases=tuple(strip_distractor(text, record.subject) for text in record.rephrases))


def _select(ref: DataRef) -> Dataset:
    _check_options(ref)
    found = find_files(ref.name, ref.source, ref.file)
    if not found.edited.records:
        raise UserError(
            found.edited.left_out() or f"{found.edited.where}: contains no record",
            fix=harness_command("data", "list", data=ref.source),
        )
    shape = _shape(ref)
    inside = [record for record in found.edited.records if belongs(ref.name, record.split_id, ref.split)]
    excluded = [record for record in found.edited.records if not belongs(ref.name, record.split_id, ref.split)]
    left_out = set(ref.without)
    held_out = _held_out(ref, found.edited.records)
    eligible = [
        record for record in inside if record.id not in left_out and (held_out is None or record.relation in held_out)
    ]
    candidates = consistent(eligible, shape) if ref.conflicts == "drop" else eligible
    edits = list(islice(candidates, ref.edits))
    if len(edits) < ref.edits:
        of_split = "records" if ref.split == "all" else f"records in the {ref.split} split"
        of_these = f", {len(edits)} of them usable together" if len(edits) < len(inside) else ""
        raise UserError(
            f"{found.edited.where}: {len(inside)} {of_split}{of_these}, {ref.edits} requested",
            fix=f"edits: {len(edits)} in the suite, or --edits {len(edits)}"
            if edits
            else _admit_more(ref, inside, eligible),
        )
    reached = eligible.index(edits[-1]) + 1
    taken = {record.id for record in eligible[:reached]}
    rest = eligible[reached:] if held_out is None else [record for record in inside if record.id not in taken]
    tiers = [
        [record for record in tier if record.id not in left_out and _may_be_learned(record, ref, held_out)]
        for tier in _tiers(found, rest, excluded)
    ]
    train, unrelated = draw(edits, tiers, ref.train, ref.unrelated)
    asked = askable(map(shape, edits))
    unasked = _questions(edits) - _questions(asked)
    notes = [found.edited.left_out()]
    if unasked:
        notes.append(
            f"{found.edited.where}: not asked: {counted(unasked, 'question')} that depend on an edit that is not among "
            f"the {len(edits):,}"
        )
    data = Dataset(
        ref,
        *(asked, tuple(map(shape, train)), tuple(map(shape, unrelated))),
        contradictory=reached - len(edits),
        notes=tuple(filter(None, notes)),
    )
    if template := _template(ref):
        _check_template(data.edits, template)
    return data


def _admit_more(ref: DataRef, inside: Sequence[EditRecord], eligible: Sequence[EditRecord]) -> str:
    """What admits more records if none can be edited, of those `inside` the split and, among these, the `eligible` ones."""
    if not inside:
        return "split: all"
    if eligible:
        return "conflicts: keep"
    return "relations: all" if ref.relations != "all" else "too_long: refuse"


def _questions(records: Iterable[EditRecord]) -> int:
    return sum(len(probes) for record in records for probes in record.probes().values())


def _held_out(ref: DataRef, records: Sequence[EditRecord]) -> frozenset[str] | None:
    """The half of the relations that edits are taken from; None if relations make no difference.

    Raises:
        UserError: if the file names fewer than two relations.
    """
    if ref.relations == "all":
        return None
    known = sorted({record.relation for record in records} - {""}, key=lambda name: digest(["relation", name]))
    if len(known) < 2:
        raise UserError(
            f"{ref.name}: relations: {ref.relations} needs records of several relations, but its file has {len(known)}",
            fix="relations: all",
        )
    return frozenset(known[: len(known) // 2])


def _may_be_learned(record: EditRecord, ref: DataRef, held_out: frozenset[str] | None) -> bool:
    """Whether a record may be in the pools; one without a relation may be of any."""
    if held_out is None:
        return True
    return record.relation != "" and (record.relation in held_out) == (ref.relations == "seen")


def _check_options(ref: DataRef) -> None:
    info = registry.datasets.get(ref.name)
    for option, value, least in (("edits", ref.edits, 1), ("train", ref.train, 0), ("unrelated", ref.unrelated, 0)):
        if value < least:
            raise UserError(f"{ref.name}: {option} is {value} but must be at least {least}", fix=f"{option}: {least}")
    if ref.template not in TEMPLATES:
        raise UserError(
            f"unknown template '{ref.template}'{did_you_mean(ref.template, TEMPLATES)}", fix="template: none"
        )
    if ref.conflicts not in CONFLICTS:
        raise UserError(
            f"unknown value '{ref.conflicts}' of conflicts{did_you_mean(ref.conflicts, CONFLICTS)}",
            fix="conflicts: keep",
        )
    if ref.template == "paper" and info.paper_template is None:
        raise UserError(f"the paper has no prompt template for dataset '{ref.name}'", fix="prompts: [none]")


def _tiers(found: DatasetFiles, rest: list[EditRecord], excluded: list[EditRecord]) -> list[list[EditRecord]]:
    """Rank pool candidates: the rest of the edited file, then other files' records with a subject, then those without.

    Unscored records of the edited file come first because only they have the same structure as the edits: flat
    CounterFact has no paraphrases and a single neighbour, and MEND's ZsRE has no probe about the subject.
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
    """Return the transformation of every selected record: strip distractors, apply the template."""
    info = registry.datasets.get(ref.name)
    template = _template(ref)

    def shape(record: EditRecord) -> EditRecord:
        if ref.strip_distractor and info.has_distractors:
            record = without_distractors(record)
        return in_template(record, template) if template is not None else record

    return shape


def _template(ref: DataRef) -> str | None:
    return registry.datasets.get(ref.name).paper_template if ref.template == "paper" else None


def _check_template(edits: Iterable[EditRecord], template: str) -> None:
    """Refuse edits whose subject would be mentioned once more by the words of the template that follow the prompt."""
    behind = template.partition("{Input}")[2]
    for record in edits:
        mention = last_mention(record.prompt, record.subject) if record.subject else Mention(0, 0)
        if mention.end > len(record.prompt) - len(behind):
            raise UserError(
                f"record {record.id}: the prompt template mentions the subject {record.subject!r} itself",
                fix="prompts: [none]",
            )


def _hash(data: Dataset) -> str:
    """Hash of everything that methods and evaluation read; where a subject is, the texts say, except for `moved`.

    Unrelated records without an answer are marked, because there are cells from before they were asked.
    """
    moved = {record.id: mention.start for record in data.edits if (mention := _not_the_last_occurrence(record))}
    asked = [record.id for record in data.unrelated if not record.ground_truth.strip()]
    groups = {"edits": data.edits, "train": data.train, "unrelated": data.unrelated}
    marks = {"mentions": moved, "unanswered": asked}
    return digest(groups | {name: mark for name, mark in marks.items() if mark})


def _not_the_last_occurrence(record: EditRecord) -> Mention | None:
    """A record's mention of its subject if the same characters occur again later, inside another word."""
    if not record.subject:
        return None
    mention = last_mention(record.prompt, record.subject)
    return mention if mention.start != record.prompt.rfind(record.subject) else None
