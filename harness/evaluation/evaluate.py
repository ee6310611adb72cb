"""Score an edited model: one row per question and protocol."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.evaluation.ask import ask_scope, predict
from harness.evaluation.probes import LOCALITY_AXES, check_lengths, probe_queries
from harness.evaluation.protocol import Protocol
from harness.evaluation.unedited import UneditedOutputs
from harness.records import Answer, Dataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.api import Advance, EditedModel


def evaluate(
    model: "EditedModel",
    data: Dataset,
    tokenizer: "PreTrainedTokenizerBase",
    protocols: Sequence[Protocol],
    batch_size: int,
    unedited: UneditedOutputs,
    progress: "Advance | None" = None,
    positions: int | None = None,
) -> list[Answer]:
    """Ask all questions of a dataset under all protocols, then get the routing score of each prompt.

    Args:
        model: the edited model; called with one batch at a time.
        data: the records.
        tokenizer: tokenizer of the target model; all ids refer to its vocabulary.
        protocols: the protocols, each in the form used for the method.
        batch_size: questions per batch. The batches of an axis are the same for every method and for the unedited
            model, so that rounding differences alone never lower locality.
        unedited: the unedited model's answers to the locality questions.
        progress: called with the number of questions after each batch; each question counts once per protocol and once
            for its routing score.
        positions: the model's context length in tokens, if it is limited.

    Raises:
        UserError: if a question is longer than that.
        ValueError: if `unedited` lacks a question, or a routing score is not in [0, 1].
    """
    ways = {Protocol.queries, *(protocol.queries for protocol in protocols)}
    questions = {tokenise: probe_queries(data, tokenizer, tokenise=tokenise) for tokenise in ways}
    for asked_alike in questions.values():
        check_lengths(asked_alike, positions)
    predictions = [predict(model, questions[one.queries], one, batch_size, progress) for one in protocols]
    # last, so that it cannot influence an answer
    scopes = ask_scope(model, questions[Protocol.queries], batch_size, progress)
    rows: list[Answer] = []
    for protocol, answers in zip(protocols, predictions, strict=True):
        for asked, predicted, scope in zip(questions[protocol.queries], answers, scopes, strict=True):
            compared = protocol.compared(asked.query, predicted, tokenizer)
            reference = None
            if asked.axis in LOCALITY_AXES:
                reference = protocol.compared(asked.query, unedited.ids(protocol, asked), tokenizer)
            row = protocol.row(asked, compared, reference, scope, tokenizer)
            rows.append(replace(row, kind=asked.asked.kind, chain=asked.asked.chain) if asked.asked else row)
    return rows
