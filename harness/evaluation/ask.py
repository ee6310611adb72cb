"""Query a model in batches of similar length, one axis per batch."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from harness.evaluation.probes import AXES, ProbeQuery
from harness.evaluation.protocol import Protocol
from harness.models.batching import length_sorted

if TYPE_CHECKING:
    from harness.api import Advance, EditedModel


def predict(
    model: "EditedModel",
    questions: Sequence[ProbeQuery],
    protocol: Protocol,
    batch_size: int,
    progress: "Advance | None" = None,
) -> list[list[int]]:
    """Predict the ids for every question, in the order of the questions."""
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
    """Get the routing score of every question, in order; NaN if the method has none.

    Raises:
        ValueError: if a score is not in [0, 1].
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


def _batches(questions: Sequence[ProbeQuery], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of the questions, batch by batch."""
    for axis in AXES:
        of_axis = [index for index, asked in enumerate(questions) if asked.axis == axis]
        queries = [questions[index].query for index in of_axis]
        for batch in length_sorted(queries, lambda query: len(query.prompt_ids) + len(query.target_ids), batch_size):
            yield [of_axis[place] for place in batch]
