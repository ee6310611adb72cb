"""What `[WEIGHT]` has to tell apart: other wordings of an edit, and prompts that resemble it but are about something else.

Both come from train records. A rephrase of a train record with the edit's relation, with the edit's subject in place of its own, is
another wording of the edit; no rephrase of an edited record is ever used.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch

from harness.records import EditRecord, EditRequest
from harness.subjects import last_mention
from methods.common.similarity import PromptMemory

POOL = 4
"""Negatives to draw from when some are hard: so many times as many as an epoch needs."""


def reworded(
    edits: Sequence[EditRecord], train: Sequence[EditRecord], number: int, generator: torch.Generator
) -> list[list[EditRequest]]:
    """Each edit as a request, followed by up to `number` requests with another wording and the same target.

    Two records have the same relation if their datasets say so, or else if their prompts differ in nothing but the subject. An edit
    without a subject, or with a relation of no train record, has only its own wording.

    Args:
        edits: the edited records, of which only the requests and the relations are read.
        train: records that may be learned from.
        number: wordings per edit.
        generator: draws them, without replacement.
    """
    frames: dict[str, dict[tuple[str, str], None]] = defaultdict(dict)
    for record in train if number else ():
        for rephrase in record.rephrases:
            if (frame := _frame(rephrase, record.subject)) and (relation := _relation(record)):
                frames[relation][frame] = None
    found = []
    for record in edits:
        request, subject = record.request(), record.subject.strip()
        texts = [subject.join(frame) for frame in frames.get(_relation(record), ())] if subject else []
        drawn = torch.randperm(len(texts), generator=generator)[:number].tolist()
        found.append([request, *(replace(request, prompt=texts[place]) for place in drawn)])
    return found


def hard_pool(
    prompts: Sequence[str], memory: PromptMemory, share: float, drawn: int, generator: torch.Generator
) -> list[str]:
    """Restrict negatives to a pool in which a share of the prompts are those most similar to the edits.

    Args:
        prompts: all negatives.
        memory: the edits.
        share: share of the pool.
        drawn: negatives that an epoch draws; the pool is `POOL` times as large, as far as there are prompts.
        generator: draws the other prompts of the pool.
    """
    size = min(len(prompts), POOL * drawn)
    similarity_N = torch.tensor([memory.similarity(prompt) for prompt in prompts])
    order = similarity_N.argsort(descending=True, stable=True).tolist()
    hard, others = order[: round(share * size)], order[round(share * size) :]
    rest = torch.randperm(len(others), generator=generator)[: size - len(hard)].tolist()
    return [prompts[place] for place in (*hard, *(others[index] for index in rest))]


def _frame(text: str, subject: str) -> tuple[str, str] | None:
    """The text before and after the last mention of a subject; None if there is none."""
    try:
        start, end = last_mention(text, subject)
    except ValueError:
        return None
    return text[:start], text[end:]


def _relation(record: EditRecord) -> str:
    """The dataset's relation id, or the prompt without its subject; empty if it has neither."""
    if record.relation:
        return record.relation
    frame = _frame(record.prompt, record.subject)
    return "{}".join(frame) if frame else ""
