"""The corpus of a tiny model: the true facts of a dataset in many words, so that an edit overwrites what is known."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from harness.records import Dataset, EditRecord


@dataclass(frozen=True, slots=True)
class Breadth:
    """How many rows a record gives in addition to its prompt."""

    rephrases: int
    templates: int
    neighbours: int
    attributes: int


EDITED = Breadth(rephrases=10, templates=3, neighbours=5, attributes=2)
UNRELATED = Breadth(rephrases=1, templates=0, neighbours=1, attributes=0)
"""Scored records are told in full. The others, which are many more, only so that a method meets facts that the model
knows: with full rows for them too, a small model would need thrice the steps to learn them all."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One training row: `prompt + " " + answer`; `subject` is empty where the upstream record does not name it."""

    prompt: str
    answer: str
    subject: str = ""


def verbalise(data: Dataset) -> list[Fact]:
    """All facts that the unedited model is meant to know, each once, in the order of the records.

    Per scored record: the prompt and its rephrases with the true object, three further templates of its relation, five
    neighbours, and two other subjects that have the new object, real ones where upstream names them, so that the object
    is something that a subject may have. Per unrelated record: the prompt, one rephrase and one neighbour. No fact pairs
    the subject of an edit with the object that the edit gives it.
    """
    records = [*data.edits, *data.train, *data.unrelated]
    templates = _templates(records)
    by_relation = _by_relation(records)
    gives_away = _answers_of_edits(data.edits)
    told = [(record, EDITED) for record in data.edits]
    told += [(record, UNRELATED) for record in (*data.train, *data.unrelated)]
    facts = [fact for record, breadth in told for fact in _facts(record, by_relation[record.relation], breadth)]
    facts += _invented(data.edits, EDITED.attributes)
    return list(
        dict.fromkeys(_with_subject(fact, templates) for fact in facts if fact.answer.strip() and not gives_away(fact))
    )


def _invented(edits: Sequence[EditRecord], each: int) -> Iterator[Fact]:
    """Invented subjects that have an edit's new object, in its words, where upstream names no real ones.

    An invented name is the first word of one subject and the last of another. Without them a model has never said a new
    object, least of all one of several tokens, and no vector at a subject could make it.
    """
    subjects = list(dict.fromkeys(record.subject for record in edits if record.subject))
    used = set(subjects)
    for place, record in enumerate(edits):
        template = _template(record.prompt, record.subject)
        if record.attributes or template is None:
            continue
        for name in islice((name for name in _mixed(subjects, place) if name not in used), each):
            used.add(name)
            yield Fact(template.format(name), record.target_new, name)


def _mixed(subjects: Sequence[str], place: int) -> Iterator[str]:
    for step in range(1, len(subjects)):
        first, last = (subjects[(place + steps) % len(subjects)] for steps in (step, 2 * step))
        yield f"{first.split()[0]} {last.split()[-1]}"


def _facts(record: EditRecord, relation_templates: Sequence[str], breadth: Breadth) -> Iterator[Fact]:
    truth = record.ground_truth
    yield Fact(record.prompt, truth, record.subject)
    for rephrase in record.rephrases[: breadth.rephrases]:
        yield Fact(rephrase, truth, record.subject if record.subject in rephrase else "")
    if record.subject and record.relation:
        # a different few for each subject, so that every template meets many subjects
        start = sum(record.subject.encode()) % max(len(relation_templates), 1)
        rotated = [*relation_templates[start:], *relation_templates[:start]]
        for template in rotated[: breadth.templates]:
            yield Fact(template.format(record.subject), truth, record.subject)
    for probe in record.locality[: breadth.neighbours]:
        yield Fact(probe.prompt, probe.answer)
    for probe in record.attributes[: breadth.attributes]:
        yield Fact(probe.prompt, probe.answer)


def _answers_of_edits(edits: Sequence[EditRecord]) -> Callable[[Fact], bool]:
    """Whether a fact tells what an edit is to teach: upstream has edits to what is true already, or true elsewhere."""
    names: dict[str, set[str]] = defaultdict(set)
    for record in edits:
        names[record.target_new.casefold()].update({record.subject} if record.subject else _prompts(record))
    return lambda fact: any(name in fact.prompt for name in names.get(fact.answer.strip().casefold(), ()))


def _prompts(record: EditRecord) -> Iterable[str]:
    return (record.prompt, *record.rephrases)


def _template(prompt: str, subject: str) -> str | None:
    """The prompt with `{}` for its subject, where the subject occurs exactly once and no brace is in the way."""
    if not subject or prompt.count(subject) != 1 or "{" in prompt or "}" in prompt:
        return None
    return prompt.replace(subject, "{}")


def _templates(records: Sequence[EditRecord]) -> list[re.Pattern[str]]:
    found = {template for r in records for p in _prompts(r) if (template := _template(p, r.subject))}
    # the longest first: "{} was born in" must not be read as "{} in" with the subject "X was born"
    ordered = sorted((t for t in found if len(t) > len("{}") + 3), key=lambda t: (-len(t), t))
    return [re.compile(re.escape(t).replace(r"\{\}", "(.{2,60})")) for t in ordered]


def _by_relation(records: Sequence[EditRecord]) -> dict[str, list[str]]:
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for record in records:
        for prompt in _prompts(record):
            if template := _template(prompt, record.subject):
                found[record.relation][template] = None
    return defaultdict(list, {relation: list(templates) for relation, templates in found.items()})


def _with_subject(fact: Fact, templates: Sequence[re.Pattern[str]]) -> Fact:
    """Name the subject of a neighbour by the template that it follows."""
    if fact.subject:
        return fact
    for pattern in templates:
        if match := pattern.fullmatch(fact.prompt):
            return Fact(fact.prompt, fact.answer, match[1])
    return fact
