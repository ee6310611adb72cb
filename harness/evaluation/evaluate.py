"""Ask an edited model everything: batches of like length, axis by axis, one row per question."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from harness.evaluation.metrics import Row, row
from harness.evaluation.probes import AXES, LOCALITY_AXES, Axis, ProbeQuery, probe_queries, questions_of
from harness.evaluation.protocols import Protocol
from harness.models.batching import length_sorted
from harness.records import DataSet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.evaluation.unedited import UneditedOutputs
    from methods.base import Advance, EditedModel


def evaluate(
    model: "EditedModel",
    data: DataSet,
    tokenizer: "PreTrainedTokenizerBase",
    protocols: Sequence[Protocol],
    batch_size: int,
    unedited: "UneditedOutputs",
    progress: "Advance | None" = None,
) -> list[Row]:
    """Ask all questions of a data set under all protocols.

    Args:
        model: after editing; it gets one batch per call.
        data: the records.
        tokenizer: of the model that was edited; all ids are its ids.
        protocols: how to ask.
        batch_size: questions per batch. The batches of an axis are the same for every method and for the unedited
            model, so that rounding alone never shows as a lost locality.
        unedited: what the unedited model says to the locality questions.
        progress: called with the number of questions after each batch; there are `question_count` in all.

    Raises:
        ValueError: if `unedited` was made from other questions.

    """
    questions = probe_queries(data, tokenizer)
    rows: list[Row] = []
    for protocol in protocols:
        predictions = predict(model, questions, protocol, batch_size, progress)
        for asked, predicted in zip(questions, predictions, strict=True):
            reference = unedited.ids(protocol, asked) if asked.axis in LOCALITY_AXES else None
            rows.append(row(asked, protocol.name, predicted, tokenizer.decode(predicted), reference))
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
    for axis in AXES:
        of_axis = [index for index, asked in enumerate(questions) if asked.axis == axis]
        queries = [questions[index].query for index in of_axis]
        batches = length_sorted(queries, lambda query: len(query.prompt_ids) + len(query.target_ids), batch_size)
        for batch in batches:
            answers = protocol.predict(model, [queries[index] for index in batch])
            for index, answer in zip(batch, answers, strict=True):
                predictions[of_axis[index]] = answer
            if progress is not None:
                progress(len(batch))
    return predictions


def question_count(data: DataSet, protocols: Sequence[Protocol], axes: Iterable[Axis] = AXES) -> int:
    """Number of questions that `evaluate` asks, for a progress bar."""
    return len(protocols) * sum(1 for axis in axes for _ in questions_of(data, axis))
