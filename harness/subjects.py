"""Find the subject in its prompt: only as whole words, never inside another word.

Methods that edit at the subject's tokens use its last mention, where the model has read all of them. EasyEdit would fill in
every occurrence, also those inside other words (rome_main.py:80); where there is one, both agree.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.records import EditRequest

_UNSPACED = re.compile(
    r"(HALFWIDTH )?(CJK|IDEOGRAPHIC|HIRAGANA|KATAKANA|HANGUL|BOPOMOFO|YI|THAI|LAO|KHMER|MYANMAR|TIBETAN)\b"
)
"""Prefixes of the Unicode names of letters in scripts without spaces between words, or before particles (Korean)."""
_JOINERS = "\u200c\u200d"
"""Zero-width (non-)joiners, which occur inside words."""


class Mention(NamedTuple):
    """A subject's characters `start..end - 1` in a text."""

    start: int
    end: int


def last_mention(text: str, subject: str) -> Mention:
    """The last mention of a subject, with the same case; surrounding white space of the subject is ignored.

    Letters, digits and combining marks belong to a word, so `Art` is not mentioned in `Artland`, `Art2` or `Smart`, but in
    `Art's`, `Art-Deco` and `“Art”`. Only the ends are compared: `C++`, `U.S.` and `'N Sync` are subjects like any other. In
    scripts without spaces, such as Chinese, any letter may begin or end a word.

    Raises:
        ValueError: if the subject is empty or not mentioned; the message says why.
    """
    subject = subject.strip()
    if not subject:
        raise ValueError(f"no subject is given for the prompt {text!r}")
    for start in _from_the_last(text, subject):
        end = start + len(subject)
        if _is_boundary(text, start) and _is_boundary(text, end):
            return Mention(start, end)
    if subject in text:
        how = "occurs only inside another word in"
    elif spelled := re.search(re.escape(subject), text, re.IGNORECASE):
        how = f"is written {spelled[0]!r} in"
    else:
        how = "is not in"
    raise ValueError(f"the subject {subject!r} {how} its prompt {text!r}")


def token_span(tokenizer: "PreTrainedTokenizerBase", text: str, mention: Mention) -> tuple[int, int]:
    """Indices, in the text's ids, of the first and last token that contain a character of a mention.

    The text is tokenised as a whole, as in `joint_query`, because a subject tokenised on its own may be split differently.

    Args:
        tokenizer: a tokenizer that supports offset mappings.
        text: the text; trailing white space is ignored.
        mention: its characters.

    Raises:
        ValueError: if no token contains any of them.
    """
    offsets = tokenizer(text.rstrip(), return_offsets_mapping=True)["offset_mapping"]
    inside = [index for index, (first, behind) in enumerate(offsets) if first < mention.end and behind > mention.start]
    if not inside:
        raise ValueError(f"no token of {text!r} contains {text[slice(*mention)]!r}")
    return inside[0], inside[-1]


def ambiguous(tokenizer: "PreTrainedTokenizerBase", requests: "Iterable[EditRequest]") -> dict[str, dict[str, Any]]:
    """The mention that counts where the characters of a subject occur more than once in its prompt.

    Returns:
        By record id: number of `occurrences`, and the `characters` (from, to, exclusive) and `tokens` (from, to, inclusive)
        of the mention; the latter only if the tokenizer supports offset mappings.
    """
    found: dict[str, dict[str, Any]] = {}
    for request in requests:
        prompt, subject = request.prompt, request.subject.strip()
        if subject and (occurrences := prompt.count(subject)) > 1:
            mention = last_mention(prompt, subject)
            tokens = {"tokens": token_span(tokenizer, prompt, mention)} if tokenizer.is_fast else {}
            found[request.record_id] = {"occurrences": occurrences, "characters": mention, **tokens}
    return found


def _from_the_last(text: str, subject: str) -> Iterator[int]:
    """Starts of all occurrences, also of overlapping ones, the last first."""
    start = text.rfind(subject)
    while start >= 0:
        yield start
        start = text.rfind(subject, 0, start + len(subject) - 1)


def _is_boundary(text: str, place: int) -> bool:
    """Whether a word may end before the character at `place`, or begin with it."""
    if place in (0, len(text)):
        return True
    before, behind = text[place - 1], text[place]
    if not (_is_of_word(before) and _is_of_word(behind)):
        return True
    if behind in _JOINERS or unicodedata.category(behind).startswith("M"):
        return False  # a mark belongs to the letter before it, in every script
    return any(_UNSPACED.match(unicodedata.name(letter, "")) for letter in (before, behind))


def _is_of_word(letter: str) -> bool:
    return letter in _JOINERS or unicodedata.category(letter)[0] in "LMN"
