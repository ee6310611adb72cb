"""Training data of the edit stage: token sequences with the positions of its two losses, and their batches."""

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
        weight_at: index of the `[WEIGHT]` logit, the last position of the prompt; None if it is not used.
        is_edit: the label z of OnceEdit eq. 6.
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
    """Prompt and target as one sequence; if joint tokenisation changes the prompt's ids, the prompt is an additional row."""
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


def negative_prompts(data: Dataset, *, rephrased: bool = False) -> list[str]:
    """Prompts with label z = 0: those of the train records and of their locality probes, without duplicates.

    Probes of evaluated records and the records of `data.unrelated` are never included. Prompts that are also edited are
    excluded.

    Args:
        data: the records.
        rephrased: also rephrases of the train records, so that their wording does not tell edits from other prompts.
    """
    edited = {record.prompt for record in data.edits}
    prompts: dict[str, None] = {}
    for record in data.train:
        prompts.update(dict.fromkeys([record.prompt, *(probe.prompt for probe in record.locality)]))
        prompts.update(dict.fromkeys(record.rephrases if rephrased else ()))
    return [prompt for prompt in prompts if prompt not in edited]


def negatives_per_epoch(n_edits: int, n_negatives: int, hparams: Mapping[str, Any]) -> int:
    """Number of negatives to draw per epoch; 0 if the `[WEIGHT]` loss is off."""
    return min(n_negatives, round(n_edits * hparams["negatives"])) if hparams["lambda_weight"] else 0


def epoch_batches(
    edits: Sequence[Sequence[TrainingRow]],
    negatives: Sequence[TrainingRow],
    n_negatives: int,
    batch: int,
    generator: torch.Generator,
) -> Iterator[list[TrainingRow]]:
    """Batches of one epoch: all edits and newly drawn negatives, the rarer kind spread evenly among the other."""
    edit_order = iter(torch.randperm(len(edits), generator=generator).tolist())
    negative_order = iter(torch.randperm(len(negatives), generator=generator)[:n_negatives].tolist())
    total = len(edits) + n_negatives
    items: list[Sequence[TrainingRow]] = []
    for place in range(total):
        is_edit = (place + 1) * len(edits) // total > place * len(edits) // total
        items.append(edits[next(edit_order)] if is_edit else [negatives[next(negative_order)]])
    for start in range(0, total, batch):
        yield [row for item in items[start : start + batch] for row in item]
