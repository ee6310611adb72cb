"""Find records that are too long for a model. Most are ruled out by their number of bytes; the rest is tokenised."""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import NamedTuple

from harness.evaluation.probes import AXES, questions_of
from harness.models.context_length import Reader, most_tokens
from harness.records import Dataset, EditRecord

SHOWN = 5
"""Maximum number of records that a message names."""


class Text(NamedTuple):
    """A prompt with its answer, as a model reads them.

    Attributes:
        bound: the most tokens that it can have.
        is_edited: whether a method may put a prefix before it.
    """

    bound: int
    record_id: str
    text: str
    is_edited: bool


def texts_of(data: Dataset) -> tuple[Text, ...]:
    """Everything that is asked, edited, or that methods may learn from, longest first."""
    asked = [
        (record_id, probe.prompt, probe.answer) for axis in AXES for record_id, _, probe in questions_of(data, axis)
    ]
    learned = [(record.id, *pair) for record in data.train for pair in _pairs(record)]
    edits = {(record.id, record.prompt) for record in data.edits}
    found = [
        Text(most_tokens(text), record_id, text, (record_id, prompt) in edits)
        for record_id, prompt, answer in (*asked, *learned)
        for text in [f"{prompt.rstrip()} {answer.strip()}"]
    ]
    return tuple(sorted(found, key=lambda text: -text.bound))


def too_long(texts: Sequence[Text], reader: Reader, overhead: int = 0) -> dict[str, int]:
    """Number of tokens of the longest text of each record that a model cannot read, by record id.

    Empty if the model's tokenizer is not on this machine; evaluation then refuses such a record.

    Args:
        texts: of `texts_of`.
        reader: the model.
        overhead: maximum number of tokens that a method puts before an edit's prompt.
    """
    doubtful = list(takewhile(lambda text: text.bound + overhead > reader.positions, texts))
    if reader.count is None or not doubtful:
        return {}
    longest: dict[str, int] = {}
    for text, tokens in zip(doubtful, reader.count([text.text for text in doubtful]), strict=True):
        total = tokens + overhead * text.is_edited
        if total > max(reader.positions, longest.get(text.record_id, 0)):
            longest[text.record_id] = total
    return longest


def complaint(found: dict[str, int], reader: Reader, dataset: str) -> str:
    """The message that a dataset has records that are too long for a model, naming the longest."""
    first = sorted(found.items(), key=lambda item: -item[1])
    named = ", ".join(f"{record_id} ({tokens:,} tokens)" for record_id, tokens in first[:SHOWN])
    more = f" and {len(first) - SHOWN} more" if len(first) > SHOWN else ""
    return (
        f"too long for {reader.name} ({reader.positions:,} positions): {dataset} {'records' if len(first) > 1 else 'record'} "
        f"{named}{more}; `too_long: drop` replaces such records"
    )


def _pairs(record: EditRecord) -> Iterator[tuple[str, str]]:
    for answer in {record.target_new, record.ground_truth}:
        yield record.prompt, answer
    yield from ((rephrase, record.target_new) for rephrase in record.rephrases)
    yield from ((probe.prompt, probe.answer) for probe in record.locality)
