"""Ask an edited model everything: batches of like length, axis by axis, one row per question and protocol."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from harness.evaluation.metrics import row
from harness.evaluation.probes import AXES, LOCALITY_AXES, Axis, ProbeQuery, probe_queries, questions_of
from harness.evaluation.protocol import Protocol
from harness.models.batching import length_sorted
from harness.records import Answer, Dataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.api import Advance, EditedModel
    from harness.evaluation.unedited import UneditedOutputs


def evaluate(
    model: "EditedModel",
    data: Dataset,
    tokenizer: "PreTrainedTokenizerBase",
    protocols: Sequence[Protocol],
    batch_size: int,
    unedited: "UneditedOutputs",
    progress: "Advance | None" = None,
) -> list[Answer]:
    """Ask all questions of a data set under all protocols, then how far each prompt is in the scope of the edits.

    Args:
        model: after editing; it gets one batch per call.
        data: the records.
        tokenizer: of the model that was edited; all ids are its ids.
        protocols: how to ask, in the forms that are the method's.
        batch_size: questions per batch. The batches of an axis are the same for every method and for the unedited
            model, so that rounding alone never shows as a lost locality.
        unedited: what the unedited model says to the locality questions.
        progress: called with the number of questions after each batch; all questions are asked once per
            protocol and once more for their scope.

    Raises:
        ValueError: if `unedited` was made from other questions, or a scope is not in [0, 1].

    """
    ways = {Protocol.queries, *(protocol.queries for protocol in protocols)}
    questions = {tokenise: probe_queries(data, tokenizer, tokenise=tokenise) for tokenise in ways}
    predictions = [predict(model, questions[one.queries], one, batch_size, progress) for one in protocols]
    # last, so that no answer can depend on whether the scope was asked for
    scopes = ask_scope(model, questions[Protocol.queries], batch_size, progress)
    rows: list[Answer] = []
    for protocol, answers in zip(protocols, predictions, strict=True):
        for asked, predicted, scope in zip(questions[protocol.queries], answers, scopes, strict=True):
            compared = protocol.compared(asked.query, predicted, tokenizer)
            reference = None
            if asked.axis in LOCALITY_AXES:
                reference = protocol.compared(asked.query, unedited.ids(protocol, asked), tokenizer)
            rows.append(row(asked, protocol.name, compared, tokenizer.decode(compared), reference, scope))
    return rows


def predict(
    model: "EditedModel",
    questions: Sequence[ProbeQuery],
    protocol: Protocol,
    batch_size: int,
    progress: "Advance | None" = None,
) -> list[list[int]]:
    """Predicted ids of every question, in the order of the questions; no batch mixes axes."""
    predictions: list[list[int]] = [[] for _ in questions]
    for batch in _batches(questions, batch_size):
        answers = protocol.predict(model, [questions[index].query for index in batch])
        for index, answer in zip(batch, answers, strict=True):
            predictions[index] = answer
        if progress is not None:
            progress(len(batch))
    return predictions


def ask_scope(
    model: "EditedModel", questions: Sequence[ProbeQuery], batch_size: int, progress: "Advance | None" = None
) -> list[float]:
    """Scope of every question, in the order of the questions; NaN for a method that does not decide by prompt.

    Raises:
        ValueError: if a scope is not in [0, 1].

    """
    scopes = [math.nan] * len(questions)
    for batch in _batches(questions, batch_size):
        values = model.scope([questions[index].query for index in batch])
        if values is not None:
            for index, value in zip(batch, values, strict=True):
                if not 0 <= value <= 1:
                    raise ValueError(f"scope {value} of '{questions[index].query.prompt}' is not in [0, 1]")
                scopes[index] = value
        if progress is not None:
            progress(len(batch))
    return scopes


def question_count(data: Dataset, times: int, axes: Iterable[Axis] = AXES) -> int:
    """Number of questions when all of a data set are asked so many times, for a progress bar."""
    return times * sum(1 for axis in axes for _ in questions_of(data, axis))


def _batches(questions: Sequence[ProbeQuery], batch_size: int) -> Iterator[list[int]]:
    """Indices of the questions in batches of like length, none of which mixes axes."""
    for axis in AXES:
        of_axis = [index for index, asked in enumerate(questions) if asked.axis == axis]
        queries = [questions[index].query for index in of_axis]
        for batch in length_sorted(queries, lambda query: len(query.prompt_ids) + len(query.target_ids), batch_size):
            yield [of_axis[place] for place in batch]
