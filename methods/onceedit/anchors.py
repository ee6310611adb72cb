"""Anchors: the tokens shared by two vocabularies, which span the space where their distributions are mixed."""

import hashlib
from dataclasses import dataclass
from typing import Literal

from methods.onceedit.vocabulary import Vocabulary

Rule = Literal["deepen", "bytes"]

_ROLES = ("eos", "bos", "unk")


@dataclass(frozen=True, slots=True)
class Anchors:
    """Paired token ids: anchor a is `llm_ids[a]` in the target model and `plugin_ids[a]` in the plug-in."""

    llm_ids: tuple[int, ...]
    plugin_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.llm_ids)


def pair_anchors(
    llm: Vocabulary, plugin: Vocabulary, rule: Rule = "deepen", *, pair_special: bool = False, share: float = 1.0
) -> Anchors:
    """Match two vocabularies.

    Args:
        llm, plugin: the vocabularies of the target model and of the plug-in.
        rule: `deepen` intersects token strings with `Ġ` read as `▁`, including added and special tokens (DeePEn, arXiv
            2404.12715; reproduces the counts of OnceEdit Table 9). `bytes` intersects the byte strings that tokens stand
            for, which avoids false matches such as the byte-level `Ã` with the letter `Ã`.
        share: share of the common tokens that is kept, by a hash of their strings: the same tokens in every pair, and a
            smaller share is part of a larger one.
        pair_special: also pair the EOS, BOS and unknown tokens by role, in this order, each id at most once.

    Returns:
        Anchors sorted by their strings, with paired special tokens last.

    Raises:
        ValueError: if the vocabularies have no token in common.
    """
    by_key = _by_string if rule == "deepen" else by_bytes
    left, right = by_key(llm), by_key(plugin)
    shared = sorted(left.keys() & right.keys())
    if share < 1:
        shared = sorted(sorted(shared, key=_order)[: max(1, round(share * len(shared)))])
    llm_ids = [left[key] for key in shared]
    plugin_ids = [right[key] for key in shared]
    if pair_special:
        for role in _ROLES:
            if role not in llm.roles or role not in plugin.roles:
                continue
            if llm.roles[role] not in llm_ids and plugin.roles[role] not in plugin_ids:
                llm_ids.append(llm.roles[role])
                plugin_ids.append(plugin.roles[role])
    if not llm_ids:
        raise ValueError("the two vocabularies share no token")
    return Anchors(tuple(llm_ids), tuple(plugin_ids))


def _order(key: bytes) -> bytes:
    """An order that has nothing to do with the tokens' meaning or frequency."""
    return hashlib.sha256(b"anchor:" + key).digest()


def _by_string(vocabulary: Vocabulary) -> dict[bytes, int]:
    """Lowest id of each string (as UTF-8) with `Ġ` read as `▁`; Llama-2 has both tokens and keeps `▁`, id 29871."""
    chosen: dict[bytes, int] = {}
    for token, token_id in sorted(vocabulary.ids.items(), key=lambda item: item[1]):
        chosen.setdefault(token.replace("Ġ", "▁").encode(), token_id)
    return chosen


def by_bytes(vocabulary: Vocabulary) -> dict[bytes, int]:
    """Lowest id of each byte string; ordinary tokens take precedence over byte-fallback tokens."""
    chosen: dict[bytes, int] = {}
    for token, token_id in sorted(
        vocabulary.ids.items(), key=lambda item: (vocabulary.is_byte_piece(item[0]), item[1])
    ):
        chosen.setdefault(vocabulary.token_bytes(token), token_id)
    return chosen
