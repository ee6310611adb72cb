"""What MEND reads: token ids, the places whose predictions count, and the ids that are expected there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.models.batching import Padded, right_padded
from harness.models.loaded import LoadedModel
from harness.records import EditRecord
from harness.tokens import Query, joint_query
from methods.common import Implementation

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """One sequence.

    Attributes:
        ids: what goes in.
        places: columns whose next-token prediction counts, at least one; all count alike.
        labels: ids expected there; empty where only the distribution counts.
        padding: how many of the first ids are padding, which no other id attends to.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...]
    labels: tuple[int, ...] = ()
    padding: int = 0


@dataclass(frozen=True, slots=True)
class Example:
    """A train record as meta-training reads it.

    Attributes:
        edit: the edit itself.
        outer: the same fact, to be right after the edit: its rephrases, or the edit once more.
        locality: prompts with answers that the edit must not change.
    """

    edit: PredictionRow
    outer: tuple[PredictionRow, ...]
    locality: tuple[PredictionRow, ...]


def edit_row(model: LoadedModel, query: Query, implementation: Implementation) -> PredictionRow:
    """A prompt with its target, each target id scored behind the ids before it.

    EasyEdit tokenises targets alone and aligns them from the end (mend_main.py:98, losses.py:65), so that a BOS or a lone
    `▁` that its tokenizer puts in front is expected where the prompt's last id is.
    """
    ids, start = query.prompt_ids + query.target_ids, len(query.prompt_ids) - 1
    if implementation == "corrected":
        return PredictionRow(ids[:-1], tuple(range(start, len(ids) - 1)), query.target_ids)
    labels = tuple(model.tokenizer(f" {query.target}")["input_ids"])[-(len(ids) - 1) :]
    return PredictionRow(ids, tuple(range(len(ids) - 1 - len(labels), len(ids) - 1)), labels)


def filled_up(rows: Sequence[PredictionRow], padding: int) -> list[PredictionRow]:
    """The rows of a call as EasyEdit's batch has them: as long as the longest, with as many labels as it has.

    It pads prompts and targets on the left with the end of the text and leaves that among the labels (mend_main.py:114),
    so that the end of the text is expected in front of the shorter targets, even where a row has not begun.

    Args:
        rows: of one call.
        padding: the id that fills up.
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
    """Rows as one batch, padded on the right, where columns are places; padding of their own is masked too."""
    batch = right_padded([row.ids for row in rows], device)
    for index, row in enumerate(rows):
        batch.mask_BT[index, : row.padding] = 0
    return batch


def locality_row(model: LoadedModel, query: Query, implementation: Implementation) -> PredictionRow:
    """A prompt with its answer, read where the answer's ids are predicted.

    EasyEdit's mask covers the places of the answer's own ids, one later, and one more in front for its BOS.
    """
    ids, start = query.prompt_ids + query.target_ids, len(query.prompt_ids)
    if implementation == "faithful-easyedit":
        return PredictionRow(ids, tuple(range(start - model.entry.adds_bos, len(ids))))
    return PredictionRow(ids[:-1], tuple(range(start - 1, len(ids) - 1)))


def examples(model: LoadedModel, records: Sequence[EditRecord], implementation: Implementation) -> list[Example]:
    """The records that meta-training can read: those with a locality probe and, unless faithful, a rephrase."""
    made = []
    for record in records:
        edit = _edit(model, record.prompt, record.target_new, implementation)
        rephrases = tuple(_edit(model, text, record.target_new, implementation) for text in record.rephrases)
        outer = (edit,) if implementation == "faithful-easyedit" else rephrases
        locality = tuple(
            locality_row(model, joint_query(model.tokenizer, probe.prompt, probe.answer), implementation)
            for probe in record.locality
        )
        if outer and locality:
            made.append(Example(edit, outer, locality))
    return made


def _edit(model: LoadedModel, prompt: str, target: str, implementation: Implementation) -> PredictionRow:
    return edit_row(model, joint_query(model.tokenizer, prompt, target), implementation)
