"""From a request to the rows that ROME, MEMIT and their kin optimise over: the fact in several contexts, and what it is about."""

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
    """One request in ids.

    Attributes:
        record_id: of the request.
        contexts: prompt and target, less its last token; first plain, then behind each context prefix.
        essence: "{subject} is a" up to the subject's last token, where the subject must go on meaning what it did.
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
    """The rows of a request (ROME §3.1).

    Args:
        model: its tokenizer and the longest sequence that it reads.
        request: names a subject that is in its prompt.
        prefixes: texts in front of the prompt, besides none.
        target_tokens: `joint`: prompt and target as one text. `alone`, as in EasyEdit: the target by itself, the row
            made of its text less the last token, its ids expected in the last places whatever the row's ids are. Where
            a target by itself begins with a lone `▁`, these places begin one too early. The end of the subject is counted
            in the ids of the text up to there (repr_tools.py:59), so that where the subject's last letters share a token
            with what follows, another token is read.

    Raises:
        UserError: naming the record, if it cannot be edited: no subject in its prompt, a prompt that is too long, a
            subject that runs into the target.
    """
    tokenizer, limit = model.tokenizer, int(model.model.config.max_position_embeddings)
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
            f"and {model.ref.name} reads at most {limit}",
            fix="leave it out",
        )
    return Rewrite(request.record_id, tuple(made), essence)


def subject_end(tokenizer: "PreTrainedTokenizerBase", prompt: str, subject: str) -> int:
    """Index, in the ids of the prompt, of the last token that holds a part of the subject's last character.

    The prompt is tokenised as one text, as `joint_query` does; a subject that is tokenised by itself may be cut
    differently. Where letters that follow share the subject's last token (`Apple` in `Apples`), that token counts; where
    the subject occurs more than once, its last occurrence does: only there has the model read all of them.

    Args:
        tokenizer: one that knows offsets.
        prompt: the text; space at its end is no part of it.
        subject: as it is written in the prompt; space around it is no part of it.

    Raises:
        UserError: if the prompt does not contain the subject, or none is named.
    """
    prompt, subject = prompt.rstrip(), subject.strip()
    if not subject:
        raise UserError(f"no subject is named for the prompt {prompt!r}", fix="records with a subject")
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
        raise ValueError(f"the target {target!r} has more tokens than its prompt and itself")
    if pivot >= len(ids):
        raise ValueError(f"the end of the subject {subject!r} is looked for behind the end of {prompt!r}")
    return PivotRow(ids, pivot, labels)


def _pivot(tokenizer: "PreTrainedTokenizerBase", prompt: str, subject: str, target_tokens: TargetTokens) -> int:
    place = subject_end(tokenizer, prompt, subject)
    if target_tokens == "joint":
        return place
    until = prompt[: prompt.rindex(subject) + len(subject)]
    return len(tokenizer(until)["input_ids"]) - 1


def _alone(tokenizer: "PreTrainedTokenizerBase", target: str) -> tuple[int, ...]:
    """Ids of " target", without a BOS in front."""
    ids = tuple(tokenizer(f" {target.strip()}")["input_ids"])
    return ids[1:] if ids[0] == tokenizer.bos_token_id else ids
