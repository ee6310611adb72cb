"""ROME's metrics of generated text: n-gram entropy, TF-IDF similarity to reference texts, and essence (ROME §3.4, App. D).

The numbers are those of ROME's and MEMIT's code on the same texts. What differs is the text: their code draws from the five most
probable tokens; here decoding is greedy, so that a cell gives the same numbers again.
"""

import json
import math
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from harness.commands import list_around
from harness.errors import UserError
from harness.identity import file_digest
from harness.models.batching import length_sorted
from harness.records import Dataset

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from torch import Tensor

    from harness.api import EditedModel
    from harness.models.loaded import LoadedModel

ENTROPY_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Weight of each n; the sum is divided by their number."""

LONGEST = 100
"""Length in ids to which prompts are continued and up to which texts are read for their perplexity."""

Texts: TypeAlias = dict[tuple[str, str], list[tuple[str, str]]]
"""Names and texts of things that have a property, by relation and target."""

KEYS = ("relation", "target", "name", "text")
VERSION = 1
"""Increment when the numbers change; part of the identity of cells that have them."""


@dataclass(frozen=True, slots=True)
class FluencyRef:
    """Reference texts that generated texts are compared with.

    Attributes:
        path: a file of reference texts in JSON Lines, or empty.
        sha256: hash of the file.
    """

    path: str = ""
    sha256: str = ""

    def identity(self) -> dict[str, Any]:
        """Everything that decides the numbers; the place of the file does not."""
        return {"version": VERSION, "references": self.sha256}

    def texts(self) -> Texts:
        """The texts; empty without a file.

        Raises:
            UserError: if the file is no longer what it was.
        """
        if not self.path:
            return {}
        file = Path(self.path)
        if not file.is_file() or file_digest(file) != self.sha256:
            raise UserError(f"{file}: has changed since the run was planned", fix="run the suite again")
        return _references(file)


def reference(path: str) -> FluencyRef:
    """Find and check a file of reference texts; an empty path means none.

    Raises:
        UserError: for a missing file or a bad row.
    """
    if not path:
        return FluencyRef()
    if Path(path).is_dir():
        raise UserError(f"fluency: a folder where a file is expected: {path}", fix=f"ls {shlex.quote(path)}")
    if not Path(path).is_file():
        raise UserError(f"fluency: no such file: {path}", fix=list_around(Path(path)))
    _references(Path(path))
    return FluencyRef(path, file_digest(Path(path)))


def fluency_metrics(
    edited: "EditedModel", model: "LoadedModel", data: Dataset, known: Texts, batch_size: int
) -> dict[str, float]:
    """Metrics of a model's texts about the subjects of its edits, averaged over records that have generation prompts.

    Args:
        edited: the edited model.
        model: the loaded model below it.
        data: the records.
        known: reference texts; empty for none.
        batch_size: prompts per call.

    Returns:
        `ngram_entropy` in bits over `n` records; with reference texts also `consistency` and `essence` over the records that
        have some, `n_consistency` and `n_essence`. Empty if no record has generation prompts.

    Raises:
        UserError: if NLTK is missing, or, with reference texts, if the model chooses tokens without giving them probabilities.
    """
    records = [record for record in data.edits if record.generation_prompts]
    texts = iter(_written(edited, model, [prompt for one in records for prompt in one.generation_prompts], batch_size))
    found: dict[str, list[float]] = defaultdict(list)
    weights = tfidf([text for same in known.values() for _, text in same]) if known else None
    for record in records:
        written = [next(texts) for _ in record.generation_prompts]
        found["ngram_entropy"].append(math.fsum(map(ngram_entropy, written)) / len(written))
        about = known.get((record.relation, record.target_new), [])
        if weights is not None and about:
            alike = consistency(written, [text for _, text in about], weights)
            found["consistency"] += [] if math.isnan(alike) else [alike]
        if own := [text for name, text in about if name == record.subject]:
            found["essence"].append(essence(edited, model, own))
    means = {name: math.fsum(values) / len(values) for name, values in found.items() if values}
    numbers = {f"n_{name}": float(len(found[name])) for name in means if name != "ngram_entropy"}
    return {**means, **numbers, "n": float(len(records))} if records else {}


def norms(parameters: "Iterable[tuple[str, Tensor]]") -> dict[str, float]:
    """Frobenius norm of every matrix among named parameters, computed in float32 on its device, by name."""
    return {name: float(value.detach().float().norm()) for name, value in parameters if value.dim() > 1}


def norm_drift(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Relative growth of the norm of the matrices that an edit has changed; 0 if it changed none.

    Growth of this norm accompanies the collapse of models under many edits (Gupta et al. 2025, arXiv 2502.01636).

    Args:
        before: norms of all matrices before the edit.
        after: norms after it, at least of the matrices that it changed.
    """
    changed = [name for name, value in before.items() if after.get(name, value) != value]
    if not changed:
        return 0.0
    return math.hypot(*(after[name] for name in changed)) / math.hypot(*(before[name] for name in changed)) - 1


def ngram_entropy(text: str) -> float:
    """Weighted mean of the entropies of bigrams and trigrams, in bits; low for text that repeats itself.

    Raises:
        UserError: if NLTK or its sentence splitter is not installed.
        ValueError: for a text without a trigram.
    """
    words = _words(text)
    return math.fsum(weight * _entropy(words, n) for n, weight in ENTROPY_WEIGHTS.items()) / len(ENTROPY_WEIGHTS)


def tfidf(documents: Sequence[str]) -> "TfidfVectorizer":
    """Weights of words by their document frequency, for `consistency`."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer().fit(documents)


def consistency(written: Sequence[str], references: Sequence[str], weights: "TfidfVectorizer") -> float:
    """Cosine of the TF-IDF vectors of a model's texts about a subject and of texts about things with the new property.

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
    ids = token_ids(model.tokenizer, [text])[0][:LONGEST]
    (scores,) = edited.score([Query(text, "", tuple(ids[:1]), tuple(ids[1:]))], reads_targets=True)
    return math.exp(-math.fsum(one.logprob for one in scores) / len(ids))


def _written(edited: "EditedModel", model: "LoadedModel", prompts: Sequence[str], batch_size: int) -> list[str]:
    """Prompts with their greedy continuations up to 100 ids; the end of a text does not stop them, as in ROME's code."""
    from harness.tokens import open_query, token_ids

    tokenizer = model.tokenizer
    lengths = map(len, token_ids(tokenizer, prompts))
    queries = [open_query(tokenizer, prompt, max(1, LONGEST - n)) for prompt, n in zip(prompts, lengths, strict=True)]
    texts = [""] * len(queries)
    for batch in length_sorted(queries, lambda query: len(query.prompt_ids), batch_size):
        for place, ids in zip(batch, edited.generate([queries[place] for place in batch]), strict=True):
            text = str(tokenizer.decode([*queries[place].prompt_ids, *ids], skip_special_tokens=True))
            texts[place] = unicodedata.normalize("NFKD", text).replace("\n\n", " ")
    return texts


def _references(file: Path) -> Texts:
    """Names and texts of things that have a property, by relation and target.

    Raises:
        UserError: for the first line without one of the keys.
    """
    found: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            relation, target, name, text = (str(row[key]) for key in KEYS)
        except (ValueError, KeyError, TypeError):
            keys = ", ".join(KEYS)
            raise UserError(f"{file}:{number}: not an object with {keys}", fix=f"sed -n {number}p {file}") from None
        found[relation, target].append((name, text))
    return dict(found)


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
