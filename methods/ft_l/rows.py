"""What FT-L trains on: the ids of a request, and which ids are scored behind which of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.records import EditRequest
from harness.tokens import Query

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class ScoredRow:
    """One request as the model reads it.

    Attributes:
        ids: what goes in.
        labels: pairs of a column and the id that is scored there; all count alike. A column may have several.
        padding: number of leading ids that no other id sees.
    """

    ids: tuple[int, ...]
    labels: tuple[tuple[int, int], ...]
    padding: int = 0


def prompt_last(query: Query) -> ScoredRow:
    """All target ids are scored behind the prompt, each as if it were the first: ROME's FT+L."""
    return ScoredRow(query.prompt_ids, tuple((len(query.prompt_ids) - 1, token) for token in query.target_ids))


def target_new(query: Query) -> ScoredRow:
    """Every target id is scored behind the ids before it: EasyEdit's `target_new`, called FT-M."""
    ids = query.prompt_ids + query.target_ids[:-1]
    return ScoredRow(ids, tuple(enumerate(query.target_ids, start=len(query.prompt_ids) - 1)))


OBJECTIVES = {"prompt_last": prompt_last, "target_new": target_new}


def faithful_rows(tokenizer: "PreTrainedTokenizerBase", requests: Sequence[EditRequest]) -> list[ScoredRow]:
    """`prompt_last` as EasyEdit computes it for one mini-batch, mistakes included.

    * A target is tokenised alone, with a space in front: BOS, where the tokenizer adds one, is scored as a target id.
    * Prompts are padded on the left with the end-of-text id, but the place that is read is the one that padding on the
      right would have: in a batch of unequal lengths a place inside the prompt, or in the padding.
    * Targets are padded too, and padding is scored unless it is the tokenizer's unknown id (as it is for GPT-J).

    Rows are in the order of the requests and equally long. What a place in the padding says depends on how a version
    of transformers treats a token that sees nothing.
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
