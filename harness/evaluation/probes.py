"""The questions of a dataset, tokenised and assigned to evaluation axes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from harness.errors import UserError
from harness.records import Dataset, EditRecord, Probe
from harness.tokens import Query, joint_queries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Axis = Literal["reliability", "generality", "locality", "locality_unrelated", "portability", "robustness", "single_hop"]
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
        asked: the question as the dataset has it; None if it does not matter.
    """

    record_id: str
    axis: Axis
    probe: int
    query: Query
    asked: Probe | None = None

    @property
    def has_known_answer(self) -> bool:
        """Whether the dataset's answer is stored as an `answer_score`: for locality, whose target is another one."""
        return self.axis in LOCALITY_AXES and (self.asked is None or self.asked.has_answer)


Tokenise = Callable[["PreTrainedTokenizerBase", Sequence[tuple[str, str]]], list[Query]]
"""Converts pairs of prompt and answer to queries."""


def probe_queries(
    data: Dataset,
    tokenizer: "PreTrainedTokenizerBase",
    axes: Iterable[Axis] = AXES,
    tokenise: Tokenise = joint_queries,
) -> list[ProbeQuery]:
    """Collect all questions of a dataset, ordered by axis, record and probe.

    Reliability uses the edit's prompt, generality its rephrases, both with the new target, and the fact's other forms.
    Locality uses the record's locality probes, `locality_unrelated` the facts of records that no method saw, and
    portability the probes that follow from the new fact. Robustness asks for the fact under pressure, and `single_hop` for
    each fact that a multi-hop question of portability combines. Of unrelated records without a known answer, as many tokens are
    compared as the record's target has.
    """
    wanted = set(axes)
    asked = [(axis, *question) for axis in AXES if axis in wanted for question in questions_of(data, axis)]
    queries = tokenise(tokenizer, [(probe.prompt, probe.answer) for *_, probe in asked])
    return [
        ProbeQuery(record_id, axis, number, query, probe)
        for (axis, record_id, number, probe), query in zip(asked, queries, strict=True)
    ]


def questions_of(data: Dataset, axis: Axis) -> Iterator[tuple[str, int, Probe]]:
    """Yield record id, number and probe of every question of one axis."""
    records = data.unrelated if axis == "locality_unrelated" else data.edits
    for record in records:
        for number, probe in enumerate(_PROBES_OF[axis](record)):
            yield record.id, number, probe


def _rephrased(record: EditRecord) -> tuple[Probe, ...]:
    return tuple(Probe(rephrase, record.target_new, aliases=record.aliases) for rephrase in record.rephrases)


def _as_it_is(record: EditRecord) -> Probe:
    """The fact before any edit; a record that does not know it only says how long an answer may be."""
    if record.ground_truth.strip():
        return Probe(record.prompt, record.ground_truth)
    return Probe(record.prompt, record.target_new, has_answer=False)


_PROBES_OF: Mapping[Axis, Callable[[EditRecord], tuple[Probe, ...]]] = {
    "reliability": lambda record: (Probe(record.prompt, record.target_new, aliases=record.aliases),),
    "generality": lambda record: _rephrased(record) + record.forms,
    "locality": lambda record: record.locality,
    "locality_unrelated": lambda record: (_as_it_is(record),),
    "portability": lambda record: record.portability,
    "robustness": lambda record: record.robustness,
    "single_hop": lambda record: record.hops,
}


def check_lengths(questions: Iterable[ProbeQuery], positions: int | None) -> None:
    """Refuse a question that, with its answer, is longer than the model's context: beyond it, scores are meaningless.

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
