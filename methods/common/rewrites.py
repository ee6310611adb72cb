"""Turns a request into the rows that ROME-like methods optimise over: the fact in several contexts, and the essence prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.records import EditRequest
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
        request: its subject must occur in its prompt.
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
    subject = request.subject.strip()
    try:
        made = [
            _row(tokenizer, f"{prefix}{request.prompt}", subject, request.target_new, target_tokens)
            for prefix in ("", *prefixes)
        ]
        text = f"{subject} is a"
        pivot = _pivot(tokenizer, text, subject, target_tokens)
        essence = PivotRow(tuple(tokenizer(text)["input_ids"][: pivot + 1]), pivot)
    except UserError as error:
        raise UserError(f"record {request.record_id}: {error.message}", fix=error.fix) from None
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


def subject_end(tokenizer: "PreTrainedTokenizerBase", prompt: str, subject: str) -> int:
    """Index, in the prompt's ids, of the last token that contains part of the subject's last character.

    The prompt is tokenised as a whole, as in `joint_query`, because a subject tokenised on its own may be split
    differently. If the subject's last token also contains the letters that follow (`Apple` in `Apples`), that token is
    used. If the subject occurs several times, its last occurrence is used, where the model has read all of them.

    Args:
        tokenizer: a tokenizer that supports offset mappings.
        prompt: the text; trailing white space is ignored.
        subject: as written in the prompt; surrounding white space is ignored.

    Raises:
        UserError: if the subject is empty or not in the prompt.
    """
    prompt, subject = prompt.rstrip(), subject.strip()
    if not subject:
        raise UserError(f"no subject is given for the prompt {prompt!r}", fix="use records with a subject")
    start = prompt.rfind(subject)
    if start < 0:
        raise UserError(
            f"the subject {subject!r} is not in its prompt {prompt!r}", fix="fix the record, or leave it out"
        )
    last = start + len(subject) - 1
    offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    return max(index for index, (first, behind) in enumerate(offsets) if first <= last < behind)


def _row(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, subject: str, target: str, target_tokens: TargetTokens
) -> PivotRow:
    pivot = _pivot(tokenizer, prompt, subject, target_tokens)
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


def _pivot(tokenizer: "PreTrainedTokenizerBase", prompt: str, subject: str, target_tokens: TargetTokens) -> int:
    place = subject_end(tokenizer, prompt, subject)
    if target_tokens == "joint":
        return place
    until = prompt[: prompt.rindex(subject) + len(subject)]
    return len(tokenizer(until)["input_ids"]) - 1


def _alone(tokenizer: "PreTrainedTokenizerBase", target: str) -> tuple[int, ...]:
    """Ids of " target" without a leading BOS."""
    ids = tuple(tokenizer(f" {target.strip()}")["input_ids"])
    return ids[1:] if ids[0] == tokenizer.bos_token_id else ids
