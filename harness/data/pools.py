"""Test and dev splits, and pools of unrelated facts.

The pools hold records that share neither subject nor prompt with anything that is scored: `train`, from which methods learn
what to leave unchanged, and `unrelated`, which no method sees. Records are ordered by a hash of their ids, and the two pools
are drawn from opposite ends of that order. A pool therefore depends neither on the file order nor on the size of the other
pool, and adding edits only removes the records that overlap with them.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import get_args

from harness.errors import UserError, did_you_mean
from harness.records import EditRecord, Split

SPLITS: tuple[str, ...] = get_args(Split)

_WORD = re.compile(r"\w+")


def is_dev(dataset: str, record_id: str) -> bool:
    """Whether a record is in the dev split, as one in four is. Hyper-parameters are tuned on these records only."""
    return hashlib.sha256(f"{dataset}:{record_id}".encode()).digest()[0] % 4 == 0


def belongs(dataset: str, record_id: str, split: str) -> bool:
    """Whether a record is in the split; every record is in `all`.

    Raises:
        UserError: for an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}'{did_you_mean(split, SPLITS)}", fix="split: test")
    return split == "all" or is_dev(dataset, record_id) == (split == "dev")


def draw(
    edits: Sequence[EditRecord], tiers: Sequence[Sequence[EditRecord]], n_train: int, n_unrelated: int
) -> tuple[tuple[EditRecord, ...], tuple[EditRecord, ...]]:
    """Draw the train and the unrelated pool, exhausting each tier before the next.

    Args:
        edits: the scored records.
        tiers: groups of candidates, preferred ones first.
        n_train: requested size of the train pool.
        n_unrelated: requested size of the unrelated pool.

    Returns:
        (train, unrelated): edits, train and unrelated share no subject and no prompt. A pool is smaller than requested
        if there are too few candidates.
    """
    if not n_train and not n_unrelated:
        return (), ()
    ordered = [sorted(tier, key=_order) for tier in tiers]
    unrelated = _take([tier[::-1] for tier in ordered], n_unrelated, Guard(edits))
    train = _take(ordered, n_train, Guard((*edits, *unrelated)))
    return train, unrelated


class Guard:
    """Leakage check: whether a record overlaps with the scored prompts of a set of records.

    A text mentions a subject if it contains the subject's words consecutively, ignoring case and punctuation.
    """

    def __init__(self, records: Iterable[EditRecord]) -> None:
        records = tuple(records)
        self._subjects = {_words(record.subject) for record in records} - {""}
        self._lengths = sorted({subject.count(" ") + 1 for subject in self._subjects})
        self._prompts = {prompt.casefold() for record in records for prompt in scored_prompts(record)}
        self._texts_with: dict[str, list[str]] = {}
        for text in map(_words, self._prompts):
            for word in set(text.split(" ")):
                self._texts_with.setdefault(word, []).append(f" {text} ")

    def admits(self, record: EditRecord) -> bool:
        """Whether the subject and prompt of a record are unrelated to the guarded records."""
        subject = _words(record.subject)
        return subject not in self._subjects and not self._mentions(subject) and self._is_foreign(record.prompt)

    def trimmed(self, record: EditRecord) -> EditRecord:
        """Drop the prompts of a record, other than its own edit's, that are guarded or mention a guarded subject."""
        return replace(
            record.with_probes(lambda probe: probe if self._is_foreign(probe.prompt) else None),
            rephrases=tuple(filter(self._is_foreign, record.rephrases)),
            generation_prompts=tuple(filter(self._is_foreign, record.generation_prompts)),
        )

    def _mentions(self, subject: str) -> bool:
        longest = max(subject.split(" "), key=len)
        return bool(subject) and any(f" {subject} " in text for text in self._texts_with.get(longest, ()))

    def _is_foreign(self, prompt: str) -> bool:
        if prompt.casefold() in self._prompts:
            return False
        words = _words(prompt).split(" ")
        return not any(
            " ".join(words[start : start + length]) in self._subjects
            for length in self._lengths
            for start in range(len(words) - length + 1)
        )


def scored_prompts(record: EditRecord) -> list[str]:
    """All prompts on which the edited model is scored."""
    asked = (probes for name, probes in record.probes().items() if name != "attributes")
    return [record.prompt, *record.rephrases, *(probe.prompt for probes in asked for probe in probes)]


def _take(tiers: Sequence[Sequence[EditRecord]], wanted: int, guard: Guard) -> tuple[EditRecord, ...]:
    taken: dict[str, EditRecord] = {}
    for tier in tiers:
        for record in tier:
            if len(taken) == wanted:
                return tuple(taken.values())
            if record.prompt.casefold() not in taken and guard.admits(record):
                taken[record.prompt.casefold()] = guard.trimmed(record)
    return tuple(taken.values())


def _order(record: EditRecord) -> bytes:
    return hashlib.sha256(f"pool:{record.id}".encode()).digest()


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))
