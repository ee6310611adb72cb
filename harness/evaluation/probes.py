"""The questions of a dataset, tokenised and assigned to evaluation axes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from harness.errors import UserError
from harness.records import Dataset
from harness.tokens import Query, joint_queries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Axis = Literal["reliability", "generality", "locality", "locality_unrelated", "portability"]
AXES: tuple[Axis, ...] = get_args(Axis)
LOCALITY_AXES: tuple[Axis, ...] = ("locality", "locality_unrelated")
"""Axes on which the edited model is compared with the unedited one."""


@dataclass(frozen=True, slots=True)
class ProbeQuery:
    """One question about one record.

    Attributes:
        record_id: id of the record.
        axis: evaluation axis.
        probe: 0-based number of the question within its record and axis.
        query: tokenised prompt and target.
    """

    record_id: str
    axis: Axis
    probe: int
    query: Query


Tokenise = Callable[["PreTrainedTokenizerBase", Sequence[tuple[str, str]]], list[Query]]
"""Converts pairs of prompt and answer to queries."""


def probe_queries(
    data: Dataset,
    tokenizer: "PreTrainedTokenizerBase",
    axes: Iterable[Axis] = AXES,
    tokenise: Tokenise = joint_queries,
) -> list[ProbeQuery]:
    """Collect all questions of a dataset, ordered by axis, record and probe.

    Reliability uses the edit's prompt and generality its rephrases, both with the new target. Locality uses the record's
    locality probes, `locality_unrelated` the facts of records that no method saw, and portability the probes that follow
    from the new fact. Unrelated records without a known answer are skipped.
    """
    wanted = set(axes)
    asked = [(axis, *question) for axis in AXES if axis in wanted for question in questions_of(data, axis)]
    queries = tokenise(tokenizer, [(prompt, answer) for *_, prompt, answer in asked])
    return [
        ProbeQuery(record_id, axis, number, query)
        for (axis, record_id, number, *_), query in zip(asked, queries, strict=True)
    ]


def questions_of(data: Dataset, axis: Axis) -> Iterator[tuple[str, int, str, str]]:
    """Yield record id, probe number, prompt and answer of every question of one axis."""
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


def check_lengths(questions: Iterable[ProbeQuery], positions: int | None) -> None:
    """Refuse a question that a model cannot read together with its answer; beyond its positions, no score means anything.

    Raises:
        UserError: names the record.
    """
    for asked in questions:
        length = len(asked.query.prompt_ids) + len(asked.query.target_ids)
        if positions is not None and length > positions:
            raise UserError(
                f"record {asked.record_id}: a question of its {asked.axis} has {length:,} tokens with the answer, "
                f"but the model has {positions:,} positions",
                fix="leave the record out, or choose a model with a longer context",
            )


def question_count(data: Dataset, times: int, axes: Iterable[Axis] = AXES) -> int:
    """Total number of questions if each is asked `times` times, for a progress bar."""
    return times * sum(1 for axis in axes for _ in questions_of(data, axis))
