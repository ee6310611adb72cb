"""Training corpus of a tiny model: the true facts of a dataset in various wordings, so that edits overwrite known facts."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from harness.records import Dataset, EditRecord


@dataclass(frozen=True, slots=True)
class Breadth:
    """Number of training rows per record, in addition to its prompt."""

    rephrases: int
    templates: int
    neighbours: int
    attributes: int


EDITED = Breadth(rephrases=10, templates=3, neighbours=5, attributes=2)
UNRELATED = Breadth(rephrases=1, templates=0, neighbours=1, attributes=0)
"""Scored records get full coverage. The far more numerous others get just enough for the model to know their facts: with
full coverage a tiny model would need three times the steps."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One training row: `prompt + " " + answer`; `subject` is empty if the upstream record does not name it."""

    prompt: str
    answer: str
    subject: str = ""


def verbalise(data: Dataset) -> list[Fact]:
    """All facts that the unedited model should know, without duplicates, in record order.

    Per scored record: the prompt and its rephrases with the true object, three further templates of its relation, five
    neighbours, and two other subjects that have the new object, so that the model has seen the object as an answer (real
    subjects if upstream names any, else invented ones). Per unrelated record: the prompt, one rephrase and one neighbour.
    No fact pairs the subject of an edit with its new object.
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
    """Facts about invented subjects that have an edit's new object, in the edit's wording, if upstream names no real ones.

    An invented name combines the first word of one subject with the last word of another. Without these facts the model
    would never have generated the new object, especially if it has several tokens, and no vector at a subject could elicit it.
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
        # a different selection for each subject, so that every template occurs with many subjects
        start = sum(record.subject.encode()) % max(len(relation_templates), 1)
        rotated = [*relation_templates[start:], *relation_templates[:start]]
        for template in rotated[: breadth.templates]:
            yield Fact(template.format(record.subject), truth, record.subject)
    for probe in record.locality[: breadth.neighbours]:
        if probe.has_answer:
            yield Fact(probe.prompt, probe.answer)
    for probe in record.hops:  # those that are edited give away their new object, and are left out
        yield Fact(probe.prompt, probe.answer)
    for probe in record.attributes[: breadth.attributes]:
        yield Fact(probe.prompt, probe.answer)


def _answers_of_edits(edits: Sequence[EditRecord]) -> Callable[[Fact], bool]:
    """Predicate for facts that give away an edit's new object: some upstream edits are already true, here or in another record."""
    names: dict[str, set[str]] = defaultdict(set)
    for record in edits:
        names[record.target_new.casefold()].update({record.subject} if record.subject else _prompts(record))
    return lambda fact: any(name in fact.prompt for name in names.get(fact.answer.strip().casefold(), ()))


def _prompts(record: EditRecord) -> Iterable[str]:
    return (record.prompt, *record.rephrases)


def _template(prompt: str, subject: str) -> str | None:
    """The prompt with `{}` in place of its subject; None unless the subject occurs exactly once and there are no braces."""
    if not subject or prompt.count(subject) != 1 or "{" in prompt or "}" in prompt:
        return None
    return prompt.replace(subject, "{}")


def _templates(records: Sequence[EditRecord]) -> list[re.Pattern[str]]:
    found = {template for r in records for p in _prompts(r) if (template := _template(p, r.subject))}
    # longest first: "{} was born in" must not be parsed as "{} in" with the subject "X was born"
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
    """Fill in the subject of a fact without one, from the template that its prompt matches."""
    if fact.subject:
        return fact
    for pattern in templates:
        if match := pattern.fullmatch(fact.prompt):
            return Fact(fact.prompt, fact.answer, match[1])
    return fact
