"""Answers compared as words: normalised exact match, containment and F1, as for SQuAD (Rajpurkar et al. 2016)."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterator

_ARTICLES = {"a", "an", "the"}
_SENTENCE = re.compile(r"(?<=[.!?;])\s")
_OPTION = re.compile(rf"{_SENTENCE.pattern}|[,:)]|\s[-–—]\s")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "“”‘’«»。、")


def normalised(text: str, *, keeps_articles: bool = False) -> list[str]:
    """The words of a text in lower case, without punctuation and English articles.

    Unlike SQuAD's script, letters are also brought to one Unicode form, because tokenizers differ in theirs, and a text of
    nothing else keeps its articles or its punctuation: `A` may be a choice, and an empty answer is not right.

    Args:
        text: the text.
        keeps_articles: whether articles are words too.
    """
    lower = unicodedata.normalize("NFKC", text).lower()
    words = lower.translate(_PUNCTUATION).split()
    return [word for word in words if keeps_articles or word not in _ARTICLES] or words or lower.split()


def answer_of(text: str) -> str:
    """The first non-empty line of a model's text."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def is_option(wanted: str) -> bool:
    """Whether a target is one of a few options: a letter, yes or no."""
    words = normalised(wanted, keeps_articles=True)
    return len(words) == 1 and (words[0] in {"yes", "no"} or (len(words[0]) == 1 and words[0].isalpha()))


def is_short(text: str) -> bool:
    """Whether a text has at most three letters or digits, as `IN`, `U.S.` and `fra` do."""
    return sum(map(str.isalnum, text)) <= 3


def beginnings(answer: str, wanted: str) -> list[str]:
    """An answer up to each of its sentence ends: the first part alone, the first two, …, the whole.

    If one of a few options is wanted, parts also end at a comma, a colon, a closing parenthesis or a dash: *Yes, he did*,
    *A) Paris*. In other answers, these belong to names: *Paris, Texas* is not *Paris*.
    """
    ends = [found.start() for found in (_OPTION if is_option(wanted) else _SENTENCE).finditer(answer)]
    return [*(answer[:end] for end in ends), answer]


def exact_match(answer: str, wanted: str) -> float:
    """1 if an answer, or one of its `beginnings`, has the same words as the target, else 0.

    A model that answers and continues has answered. Periods of abbreviations do no harm, because longer beginnings count too.
    """
    return float(any(words == looked_for for words, looked_for in _beginnings(answer, wanted)))


def contains(answer: str, wanted: str) -> float:
    """1 if the target's words occur consecutively in the answer, else 0; a target without words is contained in every answer."""
    return float(any(_has_run(words, looked_for) for words, looked_for in _beginnings(answer, wanted)))


def _has_run(words: list[str], run: list[str]) -> bool:
    starts = range(len(words) - len(run) + 1)
    return any(words[start : start + len(run)] == run for start in starts)


def f1(answer: str, wanted: str) -> float:
    """Harmonic mean of precision and recall of words; 1 if both texts have none."""
    words, looked_for = _compared(answer, wanted)
    if not words or not looked_for:
        return float(words == looked_for)
    common = (Counter(words) & Counter(looked_for)).total()
    return 2 * common / (len(words) + len(looked_for))


def _compared(answer: str, wanted: str) -> tuple[list[str], list[str]]:
    """The words of both; articles count in both if one of them has no other words, as the choice `A` of several."""
    keeps_articles = any(_ARTICLES.issuperset(normalised(text, keeps_articles=True)) for text in (answer, wanted))
    return normalised(answer, keeps_articles=keeps_articles), normalised(wanted, keeps_articles=keeps_articles)


def _beginnings(answer: str, wanted: str) -> Iterator[tuple[list[str], list[str]]]:
    """The words of an answer's `beginnings`, each with those of the target."""
    return (_compared(part, wanted) for part in beginnings(answer, wanted))
