"""Training rows of FT-L: the ids of a request, and the labels scored at each position."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.records import EditRequest
from harness.tokens import Query

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """One request as model input and labels.

    Attributes:
        ids: input ids.
        labels: pairs of a column and the id scored there, all with equal weight. A column may have several labels.
        padding: number of leading ids that are masked out.
    """

    ids: tuple[int, ...]
    labels: tuple[tuple[int, int], ...]
    padding: int = 0


def prompt_last(query: Query) -> ScoredRow:
    """Score all target ids at the last prompt position, each as if it were the first: ROME's FT+L."""
    return ScoredRow(query.prompt_ids, tuple((len(query.prompt_ids) - 1, token) for token in query.target_ids))


def target_new(query: Query) -> ScoredRow:
    """Score every target id given the ids before it: EasyEdit's `target_new`, also called FT-M."""
    ids = query.prompt_ids + query.target_ids[:-1]
    return ScoredRow(ids, tuple(enumerate(query.target_ids, start=len(query.prompt_ids) - 1)))


OBJECTIVES = {"prompt_last": prompt_last, "target_new": target_new}


def faithful_rows(tokenizer: "PreTrainedTokenizerBase", requests: Sequence[EditRequest]) -> list[ScoredRow]:
    """`prompt_last` rows as EasyEdit builds them for one mini-batch, bugs included.

    * The target is tokenised alone, with a leading space: if the tokenizer adds BOS, BOS is scored as a target id.
    * Prompts are padded on the left with the end-of-text id, but the logits are read where right padding would put the last
      prompt token: in a batch of unequal lengths, that is a position inside the prompt or the padding.
    * Targets are padded too, and the padding is scored unless it is the tokenizer's unknown id (as it is for GPT-J).

    Rows are in the order of the requests and have equal length. The logits at a padded position depend on how the
    installed version of transformers handles a token that attends to nothing.
    """
    prompts = [tuple(tokenizer(request.prompt)["input_ids"]) for request in requests]
    targets = [tuple(tokenizer(f" {request.target_new}")["input_ids"]) for request in requests]
    width, target_width, pad = max(map(len, prompts)), max(map(len, targets)), tokenizer.eos_token_id
    rows = []
    for prompt, target in zip(prompts, targets, strict=True):
        padded = (pad,) * (target_width - len(target)) + target
        labels = tuple((len(prompt) - 1, token) for token in padded if token != tokenizer.unk_token_id)
        padding = width - len(prompt)
        rows.append(ScoredRow((pad,) * padding + prompt, labels, padding))
    return rows
