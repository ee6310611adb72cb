"""Turns a request into the rows that ROME-like methods optimise over: the fact in several contexts, and the essence prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.records import EditRequest
from harness.subjects import Mention, last_mention, token_span
from harness.tokens import joint_query
from methods.common.aligned import PivotRow
from methods.common.closed_form import TargetTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.models.loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class Rewrite:
    """One tokenised request.

    Attributes:
        record_id: id of the record.
        contexts: prompt and target without its last token: first plain, then after each context prefix.
        essence: "{subject} is a" up to the subject's last token, where the KL term preserves the model's predictions.
    """

    record_id: str
    contexts: tuple[PivotRow, ...]
    essence: PivotRow

    @property
    def rows(self) -> tuple[PivotRow, ...]:
        """All rows, the essence last."""
        return (*self.contexts, self.essence)


def rewrite(
    model: "LoadedModel", request: EditRequest, prefixes: Sequence[str], target_tokens: TargetTokens
) -> Rewrite:
    """Build the rows of a request (ROME §3.1).

    Args:
        model: supplies the tokenizer and the maximum sequence length.
        request: its prompt must mention its subject; the last mention counts (see `harness.subjects`).
        prefixes: context prefixes to use in addition to the plain prompt.
        target_tokens: `joint`: prompt and target are tokenised as one text. `alone`, as in EasyEdit: the target is tokenised
            on its own, the row is the text without its last token, and the target ids are the labels of the row's last
            positions, whatever the row's ids are. If the target alone begins with a lone `▁`, these positions start one
            too early. The subject's end is found by tokenising the text up to it (repr_tools.py:59), so a different token
            is used if the subject's last letters share a token with what follows.

    Raises:
        UserError: if the record cannot be edited (the message names it): the subject is not in the prompt, the prompt is
            too long, or the subject shares a token with the target.
    """
    tokenizer, limit = model.tokenizer, model.context
    try:
        start, end = last_mention(request.prompt, request.subject)
        made = [
            _row(
                tokenizer,
                f"{prefix}{request.prompt}",
                Mention(len(prefix) + start, len(prefix) + end),
                request.target_new,
                target_tokens,
            )
            for prefix in ("", *prefixes)
        ]
        subject = request.prompt[start:end]
        text = f"{subject} is a"
        pivot = _pivot(tokenizer, text, Mention(0, len(subject)), target_tokens)
        essence = PivotRow(tuple(tokenizer(text)["input_ids"][: pivot + 1]), pivot)
    except ValueError as error:
        raise UserError(f"record {request.record_id}: {error}", fix="fix the record, or leave it out") from None
    longest = max(len(row.ids) for row in made)
    if longest > limit:
        raise UserError(
            f"record {request.record_id}: {longest} tokens with its longest context prefix, "
            f"but {model.ref.name} reads at most {limit}",
            fix="leave it out",
        )
    return Rewrite(request.record_id, tuple(made), essence)


def _row(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, mention: Mention, target: str, target_tokens: TargetTokens
) -> PivotRow:
    pivot, subject = _pivot(tokenizer, prompt, mention, target_tokens), prompt[slice(*mention)]
    if target_tokens == "joint":
        query = joint_query(tokenizer, prompt, target)
        if pivot >= len(query.prompt_ids):
            raise ValueError(f"the subject {subject!r} shares a token with the target {target!r}")
        return PivotRow(query.prompt_ids + query.target_ids[:-1], pivot, query.target_ids)
    labels = _alone(tokenizer, target)
    ids = tuple(tokenizer(prompt.rstrip() + tokenizer.decode(labels[:-1]))["input_ids"])
    if len(labels) > len(ids):
        raise ValueError(f"the target {target!r} has more tokens than prompt and target together")
    if pivot >= len(ids):
        raise ValueError(f"the end of the subject {subject!r} would be after the end of {prompt!r}")
    return PivotRow(ids, pivot, labels)


def _pivot(tokenizer: "PreTrainedTokenizerBase", prompt: str, mention: Mention, target_tokens: TargetTokens) -> int:
    """Index of the token that ends the subject; if it also contains letters that follow, `joint` takes it all the same."""
    if target_tokens == "joint":
        return token_span(tokenizer, prompt, mention)[1]
    return len(tokenizer(prompt[: mention.end])["input_ids"]) - 1


def _alone(tokenizer: "PreTrainedTokenizerBase", target: str) -> tuple[int, ...]:
    """Ids of " target" without a leading BOS."""
    ids = tuple(tokenizer(f" {target.strip()}")["input_ids"])
    return ids[1:] if ids[0] == tokenizer.bos_token_id else ids
