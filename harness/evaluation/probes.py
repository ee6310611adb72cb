"""The questions of a dataset, tokenised: what is asked about each record, and on which axis it counts."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from harness.records import Dataset
from harness.tokens import Query, joint_queries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Axis = Literal["reliability", "generality", "locality", "locality_unrelated", "portability"]
AXES: tuple[Axis, ...] = get_args(Axis)
LOCALITY_AXES: tuple[Axis, ...] = ("locality", "locality_unrelated")
"""Axes that ask whether the edited model still says what the unedited one says."""


@dataclass(frozen=True, slots=True)
class ProbeQuery:
    """One question about one record.

    Attributes:
        record_id: the record that it is about.
        axis: the axis that it counts on.
        probe: number of the question within its record and axis, from 0.
        query: prompt and target in ids.
    """

    record_id: str
    axis: Axis
    probe: int
    query: Query


Tokenise = Callable[["PreTrainedTokenizerBase", Sequence[tuple[str, str]]], list[Query]]
"""Turns pairs of prompt and answer into queries."""


def probe_queries(
    data: Dataset,
    tokenizer: "PreTrainedTokenizerBase",
    axes: Iterable[Axis] = AXES,
    tokenise: Tokenise = joint_queries,
) -> list[ProbeQuery]:
    """All questions of a dataset, in the order of axes, records and probes.

    Reliability asks the edit's prompt and generality its rephrases, both for the new target; locality asks the
    record's locality probes; `locality_unrelated` asks for facts of records that no method saw; portability asks what
    follows from the new fact. An unrelated record without a known answer has no question.
    """
    wanted = set(axes)
    asked = [(axis, *question) for axis in AXES if axis in wanted for question in questions_of(data, axis)]
    queries = tokenise(tokenizer, [(prompt, answer) for *_, prompt, answer in asked])
    return [
        ProbeQuery(record_id, axis, number, query)
        for (axis, record_id, number, *_), query in zip(asked, queries, strict=True)
    ]


def questions_of(data: Dataset, axis: Axis) -> Iterator[tuple[str, int, str, str]]:
    """Record id, probe number, prompt and answer of every question of one axis."""
    if axis == "locality_unrelated":
        for record in data.unrelated:
            if record.ground_truth.strip():
                yield record.id, 0, record.prompt, record.ground_truth
        return
    for record in data.edits:
        match axis:
            case "reliability":
                asked = [(record.prompt, record.target_new)]
            case "generality":
                asked = [(rephrase, record.target_new) for rephrase in record.rephrases]
            case "locality":
                asked = [(probe.prompt, probe.answer) for probe in record.locality]
            case "portability":
                asked = [(probe.prompt, probe.answer) for probe in record.portability]
        for number, (prompt, answer) in enumerate(asked):
            yield record.id, number, prompt, answer


def question_count(data: Dataset, times: int, axes: Iterable[Axis] = AXES) -> int:
    """Number of questions if every question of a dataset is asked so many times, for a progress bar."""
    return times * sum(1 for axis in axes for _ in questions_of(data, axis))
