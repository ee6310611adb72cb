"""ROME's metrics of generated text: n-gram entropy, TF-IDF similarity to reference texts, and essence (ROME §3.4, App. D).

The numbers are those of ROME's and MEMIT's code on the same texts. What differs is the text: their code draws from the five most
probable tokens, an edited model here writes greedily, so that a cell gives the same numbers again.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.errors import UserError

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer

    from harness.api import EditedModel
    from harness.models.loaded import LoadedModel

ENTROPY_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Weight of each n; the sum is divided by their number."""

ESSENCE_IDS = 100
"""Texts are read up to so many ids for their perplexity."""


def ngram_entropy(text: str) -> float:
    """Weighted mean of the entropies of bigrams and trigrams, in bits; low for text that repeats itself.

    Raises:
        UserError: if NLTK or its sentence splitter is not installed.
        ValueError: for a text without a trigram.
    """
    words = _words(text)
    return math.fsum(weight * _entropy(words, n) for n, weight in ENTROPY_WEIGHTS.items()) / len(ENTROPY_WEIGHTS)


def tfidf(documents: Sequence[str]) -> "TfidfVectorizer":
    """Weights of words by how many documents have them, for `consistency`."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer().fit(documents)


def consistency(written: Sequence[str], references: Sequence[str], weights: "TfidfVectorizer") -> float:
    """Cosine of the TF-IDF vectors of what a model wrote about a subject and of texts about things with the new property.

    Args:
        written: continuations of a record's generation prompts, with the prompts.
        references: the texts.
        weights: from `tfidf`.

    Returns:
        In [0, 1]; NaN if one side has no word that the documents have.
    """
    both = weights.transform([" ".join(written), " ".join(references)])
    left, right = both[0], both[1]
    norms = math.sqrt(left.multiply(left).sum() * right.multiply(right).sum())
    return float(left.multiply(right).sum() / norms) if norms else math.nan


def essence(edited: "EditedModel", model: "LoadedModel", texts: Sequence[str]) -> float:
    """Perplexity of texts about the subject, together and up to 100 ids, after the edit: what else the model knew about it.

    As in ROME's code, the sum over all ids but the first is divided by the number of all ids.

    Raises:
        UserError: if the model chooses tokens without giving them probabilities.
    """
    from harness.tokens import Query, token_ids

    text = " ".join(texts)
    ids = token_ids(model.tokenizer, [text])[0][:ESSENCE_IDS]
    (scores,) = edited.score([Query(text, "", tuple(ids[:1]), tuple(ids[1:]))], reads_targets=True)
    return math.exp(-math.fsum(one.logprob for one in scores) / len(ids))


def _entropy(words: Sequence[str], n: int) -> float:
    """Entropy of the n-grams of a text, in bits."""
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    if not counts:
        raise ValueError(f"no {n}-gram in a text of {len(words)} words")
    total = counts.total()
    return -math.fsum(count / total * math.log2(count / total) for count in counts.values())


def _words(text: str) -> list[str]:
    """Words and punctuation by NLTK's Penn Treebank rules, sentence by sentence."""
    try:
        from nltk import word_tokenize

        return list(word_tokenize(text))
    except ImportError:
        raise UserError("n-gram entropy needs NLTK", fix="pip install 'editing-harness[capability]'") from None
    except LookupError:
        raise UserError("NLTK has no sentence splitter here", fix="python -m nltk.downloader punkt_tab") from None
