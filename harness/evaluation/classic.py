"""CounterFact's own metrics, by probability: efficacy, paraphrase and neighbourhood success and magnitude (ROME §3.4).

A question is answered by whichever of two targets is more probable, the new one or the original one. This says less than what a
model writes: a new target may win with a probability of one in a million.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.models.batching import length_sorted
from harness.records import Dataset, EditRecord
from harness.tokens import Query, joint_queries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.api import EditedModel

SUCCESS, MAGNITUDE = (
    {"edit": "ES", "paraphrase": "PS", "neighbour": "NS"},
    {"edit": "EM", "paraphrase": "PM", "neighbour": "NM"},
)
"""Names of success and magnitude by kind of question."""


@dataclass(frozen=True, slots=True)
class Duel:
    """A question with the probabilities of both targets.

    Attributes:
        kind: `edit`, `paraphrase`, or `neighbour`: a locality question whose answer is the edit's original one.
        wanted, other: probability per token, the geometric mean over the tokens of a target, as ROME's code has it. Wanted is
            the new target, for a neighbour the original one.
    """

    record_id: str
    kind: str
    wanted: float
    other: float


def duels(model: "EditedModel", data: Dataset, tokenizer: "PreTrainedTokenizerBase", batch_size: int) -> list[Duel]:
    """Compare both targets after every prompt of the edits that have an original answer.

    Args:
        model: the edited model; must give probabilities.
        data: the records; those without `ground_truth` are left out.
        tokenizer: of the target model.
        batch_size: rows per forward pass.

    Raises:
        UserError: if the model chooses tokens without giving them probabilities.
    """
    asked = [(record, *question) for record in data.edits if record.ground_truth for question in _questions(record)]
    pairs = [(prompt, target) for _, _, prompt, *targets in asked for target in targets]
    probabilities = _probabilities(model, joint_queries(tokenizer, pairs), batch_size)
    return [
        Duel(record.id, kind, probabilities[2 * place], probabilities[2 * place + 1])
        for place, (record, kind, *_) in enumerate(asked)
    ]


def classic_metrics(found: Sequence[Duel]) -> dict[str, float]:
    """Success and magnitude of each kind, means over records of means over their questions; `S`, the harmonic mean of success.

    Returns:
        `ES`, `PS`, `NS` in [0, 1], `EM`, `PM`, `NM` in [-1, 1], `S`, and the number of records `n`; a kind without questions
        is absent, and `S` then too.
    """
    metrics: dict[str, float] = {"n": float(len({duel.record_id for duel in found}))}
    for kind in SUCCESS:
        of_kind: dict[str, list[Duel]] = {}
        for duel in found:
            if duel.kind == kind:
                of_kind.setdefault(duel.record_id, []).append(duel)
        if of_kind:
            metrics[SUCCESS[kind]] = _mean(
                _mean(float(one.wanted > one.other) for one in same) for same in of_kind.values()
            )
            metrics[MAGNITUDE[kind]] = _mean(_mean(one.wanted - one.other for one in same) for same in of_kind.values())
    success = [metrics[name] for name in SUCCESS.values() if name in metrics]
    if len(success) == len(SUCCESS):
        metrics["S"] = len(success) / sum(1 / value for value in success) if all(success) else 0.0
    return metrics


def _questions(record: EditRecord) -> Iterator[tuple[str, str, str, str]]:
    """Kind, prompt, the wanted and the other target."""
    new, true = record.target_new, record.ground_truth
    yield "edit", record.prompt, new, true
    for rephrase in record.rephrases:
        yield "paraphrase", rephrase, new, true
    for probe in record.locality:
        if probe.answer == true:  # elsewhere, neither target is an answer
            yield "neighbour", probe.prompt, true, new


def _probabilities(model: "EditedModel", queries: Sequence[Query], batch_size: int) -> list[float]:
    found = [math.nan] * len(queries)
    for batch in length_sorted(queries, lambda query: len(query.prompt_ids) + len(query.target_ids), batch_size):
        for place, scores in zip(batch, model.score([queries[place] for place in batch]), strict=True):
            found[place] = math.exp(_mean(score.logprob for score in scores))
    return found


def _mean(values: "Iterator[float]") -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)
