"""What MEND reads: token ids, the places whose predictions count, and the ids that are expected there."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.models.loaded import LoadedModel
from harness.records import EditRecord
from harness.tokens import Query, joint_query
from methods.mend.hparams import Implementation


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence.

    Attributes:
        ids: what goes in.
        places: columns whose next-token prediction counts, at least one; all count alike.
        labels: ids expected there; empty where only the distribution counts.
    """

    ids: tuple[int, ...]
    places: tuple[int, ...]
    labels: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """A train record as meta-training reads it.

    Attributes:
        edit: the edit itself.
        outer: the same fact, to be right after the edit: its rephrases, or the edit once more.
        locality: prompts with answers that the edit must not change.
    """

    edit: Row
    outer: tuple[Row, ...]
    locality: tuple[Row, ...]


def edit_row(model: LoadedModel, query: Query, implementation: Implementation) -> Row:
    """A prompt with its target, each target id scored behind the ids before it.

    EasyEdit tokenises targets alone and aligns them from the end, so that a BOS that its tokenizer puts in front is
    expected where the prompt's last id is.
    """
    ids, start = query.prompt_ids + query.target_ids[:-1], len(query.prompt_ids) - 1
    places, labels = tuple(range(start, len(ids))), query.target_ids
    if implementation == "faithful-easyedit" and model.entry.adds_bos and start > 0:
        places, labels = (start - 1, *places), (model.tokenizer.bos_token_id, *labels)
    return Row(ids, places, labels)


def locality_row(model: LoadedModel, query: Query, implementation: Implementation) -> Row:
    """A prompt with its answer, read where the answer's ids are predicted.

    EasyEdit's mask covers the places of the answer's own ids, one later, and one more in front for its BOS.
    """
    ids, start = query.prompt_ids + query.target_ids, len(query.prompt_ids)
    if implementation == "faithful-easyedit":
        return Row(ids, tuple(range(start - model.entry.adds_bos, len(ids))))
    return Row(ids[:-1], tuple(range(start - 1, len(ids) - 1)))


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


def _edit(model: LoadedModel, prompt: str, target: str, implementation: Implementation) -> Row:
    return edit_row(model, joint_query(model.tokenizer, prompt, target), implementation)
