"""What the edit stage trains on: sequences of ids with the places where its two losses are read, and their batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from harness.records import Dataset, EditRequest
from harness.tokens import joint_query

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One training sequence.

    Attributes:
        ids: token ids.
        label_from: index of the first id that is a label of the generation loss; None if there is none.
        weight_at: index where the logit of `[WEIGHT]` is read, the last position of the prompt; None if it is not.
        is_edit: the label z of eq. 6.
    """

    ids: tuple[int, ...]
    label_from: int | None
    weight_at: int | None
    is_edit: bool

    @property
    def labels(self) -> range:
        """Indices of the ids that are labels of the generation loss."""
        return range(len(self.ids) if self.label_from is None else self.label_from, len(self.ids))


def edit_rows(tokenizer: "PreTrainedTokenizerBase", request: EditRequest) -> list[TrainingRow]:
    """The joint sequence of an edit; where joint tokenisation cuts its prompt short, the prompt is a row of its own."""
    query = joint_query(tokenizer, request.prompt, request.target_new)
    joint, cut = query.prompt_ids + query.target_ids, len(query.prompt_ids)
    alone = prompt_row(tokenizer, request.prompt, is_edit=True)
    if alone.ids == query.prompt_ids:
        return [TrainingRow(joint, cut, cut - 1, is_edit=True)]
    return [TrainingRow(joint, cut, None, is_edit=True), alone]


def prompt_row(tokenizer: "PreTrainedTokenizerBase", prompt: str, *, is_edit: bool) -> TrainingRow:
    """A prompt without a target."""
    ids = tuple(tokenizer(prompt)["input_ids"])
    return TrainingRow(ids, None, len(ids) - 1, is_edit)


def negative_prompts(data: Dataset) -> list[str]:
    """Prompts with label z = 0: unrelated records of the train split and their neighbours, each once.

    Neither the probes of a scored record nor the records of `data.unrelated` are among them. A prompt that is also
    edited is left out.
    """
    edited = {record.prompt for record in data.edits}
    prompts: dict[str, None] = {}
    for record in data.train:
        prompts.update(dict.fromkeys([record.prompt, *(probe.prompt for probe in record.locality)]))
    return [prompt for prompt in prompts if prompt not in edited]


def negatives_per_epoch(n_edits: int, n_negatives: int, hparams: Mapping[str, Any]) -> int:
    """How many negatives an epoch draws: none where their loss does not count."""
    return min(n_negatives, n_edits * hparams["negatives"]) if hparams["lambda_weight"] else 0


def epoch_batches(
    edits: Sequence[Sequence[TrainingRow]],
    negatives: Sequence[TrainingRow],
    n_negatives: int,
    batch: int,
    generator: torch.Generator,
) -> Iterator[list[TrainingRow]]:
    """One epoch: all edits and a fresh draw of negatives, the rarer kind spread evenly among the other."""
    edit_order = iter(torch.randperm(len(edits), generator=generator).tolist())
    negative_order = iter(torch.randperm(len(negatives), generator=generator)[:n_negatives].tolist())
    total = len(edits) + n_negatives
    items: list[Sequence[TrainingRow]] = []
    for place in range(total):
        is_edit = (place + 1) * len(edits) // total > place * len(edits) // total
        items.append(edits[next(edit_order)] if is_edit else [negatives[next(negative_order)]])
    for start in range(0, total, batch):
        yield [row for item in items[start : start + batch] for row in item]
