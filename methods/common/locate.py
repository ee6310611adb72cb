"""Where a subject ends among the ids of its prompt: the place that ROME and its kin edit."""

from typing import TYPE_CHECKING

from harness.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
            f"the subject {subject!r} is not in its prompt {prompt!r}", fix="mend the record, or leave it out"
        )
    last = start + len(subject) - 1
    offsets = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    return max(index for index, (first, behind) in enumerate(offsets) if first <= last < behind)
