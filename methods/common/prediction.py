"""Inputs of MEND: token ids, the positions whose predictions are scored, and their labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.models.batching import Padded, right_padded
from harness.models.loaded import LoadedModel
from harness.records import EditRecord, Probe
from harness.tokens import Query, joint_query
from methods.common import Implementation

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """One sequence and the predictions to score.

    Attributes:
        ids: input ids.
        places: positions whose next-token prediction is scored, at least one, weighted equally.
        labels: expected ids at these positions; empty if only the distribution matters.
        padding: number of leading padding ids, which no other id attends to.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...]
    labels: tuple[int, ...] = ()
    padding: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """A train record prepared for meta-training.

    Attributes:
        edit: the edit itself.
        outer: rows for the edit loss: the rephrases, or the edit prompt itself.
        locality: prompts whose answers the edit must not change.
    """

    edit: PredictionRow
    outer: tuple[PredictionRow, ...]
    locality: tuple[PredictionRow, ...]


def edit_row(model: LoadedModel, query: Query, implementation: Implementation) -> PredictionRow:
    """A prompt with its target, where every target id is predicted from the ids before it.

    EasyEdit tokenises the target on its own and aligns it at the end (mend_main.py:98, losses.py:65), so a BOS or lone `▁`
    that the tokenizer prepends becomes the label for the prompt's last id.
    """
    ids, start = query.prompt_ids + query.target_ids, len(query.prompt_ids) - 1
    if implementation == "corrected":
        return PredictionRow(ids[:-1], tuple(range(start, len(ids) - 1)), query.target_ids)
    labels = tuple(model.tokenizer(f" {query.target}")["input_ids"])[-(len(ids) - 1) :]
    return PredictionRow(ids, tuple(range(len(ids) - 1 - len(labels), len(ids) - 1)), labels)


def filled_up(rows: Sequence[PredictionRow], padding: int) -> list[PredictionRow]:
    """Pad the rows of a batch as EasyEdit does: to the longest row and to the largest number of labels.

    EasyEdit left-pads prompts and targets with EOS and keeps the padding among the labels (mend_main.py:114), so EOS is
    expected before each shorter target, even at positions before the row begins.

    Args:
        rows: one batch of edits.
        padding: id of the padding token.
    """
    width, longest = max(len(row.ids) for row in rows), max(len(row.labels) for row in rows)
    places = tuple(range(width - 1 - longest, width - 1))
    return [
        PredictionRow(
            (padding,) * (width - len(row.ids)) + row.ids,
            places,
            (padding,) * (longest - len(row.labels)) + row.labels,
            width - len(row.ids),
        )
        for row in rows
    ]


def padded(rows: Sequence[PredictionRow], device: "torch.device") -> Padded:
    """Batch the rows with right padding, so that columns are positions, and mask each row's own leading padding."""
    batch = right_padded([row.ids for row in rows], device)
    for index, row in enumerate(rows):
        batch.mask_BT[index, : row.padding] = 0
    return batch


def locality_row(model: LoadedModel, probe: Probe, implementation: Implementation) -> PredictionRow:
    """A prompt with its answer, scored at the positions that predict the answer; only at the first one if it is unknown.

    EasyEdit's mask instead covers the positions of the answer's own ids, one later, plus one in front for the BOS.
    """
    query = joint_query(model.tokenizer, probe.prompt, probe.answer)
    ids, start = query.prompt_ids + query.target_ids, len(query.prompt_ids)
    if not probe.has_answer:
        return PredictionRow(query.prompt_ids, (start - 1,))
    if implementation == "faithful-easyedit":
        return PredictionRow(ids, tuple(range(start - model.spec.adds_bos, len(ids))))
    return PredictionRow(ids[:-1], tuple(range(start - 1, len(ids) - 1)))


def examples(model: LoadedModel, records: Sequence[EditRecord], implementation: Implementation) -> list[Example]:
    """Prepare the records usable for meta-training: those with a locality probe and, if `corrected`, a rephrase."""
    made = []
    for record in records:
        edit = _edit(model, record.prompt, record.target_new, implementation)
        rephrases = tuple(_edit(model, text, record.target_new, implementation) for text in record.rephrases)
        outer = (edit,) if implementation == "faithful-easyedit" else rephrases
        locality = tuple(locality_row(model, probe, implementation) for probe in record.locality)
        if outer and locality:
            made.append(Example(edit, outer, locality))
    return made


def _edit(model: LoadedModel, prompt: str, target: str, implementation: Implementation) -> PredictionRow:
    return edit_row(model, joint_query(model.tokenizer, prompt, target), implementation)
