"""Context length of a model and token counts of texts, without loading the model. Does not import torch."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.models import checkpoint, hub, sources
from harness.models.catalogue import ModelRef
from harness.tokens import token_ids

Count = Callable[[Sequence[str]], list[int]]
"""Number of tokens of each text, with BOS where the model has one."""

_POSITIONS = ("max_position_embeddings", "n_positions")
"""Names of the context length in configurations. A sliding window limits attention, not the length of a text."""

_EXPANSION = 11
"""A character that is not ASCII may become this many times as many bytes in Unicode normalisation (NFKC)."""


@dataclass(frozen=True)
class Reader:
    """Context length and tokenizer of a model.

    Attributes:
        name: name of the model.
        positions: its context length in tokens.
        count: its tokenizer; None if there is none on this machine yet.
        is_exact: whether `count` counts tokens, not bytes because the tokenizer is yet to be trained.
    """

    name: str
    positions: int
    count: Count | None
    is_exact: bool = True


@cache
def reader(ref: ModelRef) -> Reader:
    """Look up the context length of a model, in the files of its checkpoint if they are on this machine, else in the catalogue.

    Raises:
        UserError: if `source` can only be a folder and does not exist.
    """
    made = ref.spec
    if ref.weights == "trained":
        return Reader(ref.name, made.max_positions, _bytes, is_exact=False)
    if ref.weights == "random":
        count = _counter(Path(ref.source).expanduser(), made.adds_bos) if ref.source else _bytes
        return Reader(ref.name, made.max_positions, count)
    folder = sources.local(ref.source)
    if folder is None and not sources.is_packed(ref.source):
        folder = hub.cached_snapshot(ref.source, ref.revision)
    if folder is None:
        return Reader(ref.name, made.max_positions, None)
    return Reader(ref.name, _positions(folder) or made.max_positions, _counter(folder, made.adds_bos))


def most_tokens(text: str) -> int:
    """Upper bound on the number of tokens of a text: one per byte, plus two for the start of the text and of a word."""
    return len(text) + 2 if text.isascii() else _EXPANSION * len(text.encode()) + 2


def _positions(folder: Path) -> int | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError:
        return None  # loading the model says what is wrong with the file
    of_text = config | config.get("text_config", {})
    longest = next((int(of_text[name]) for name in _POSITIONS if of_text.get(name)), None)
    original = _original_positions(of_text)
    return min((length for length in (longest, original) if length is not None), default=None)


def _original_positions(config: Mapping[str, Any]) -> int | None:
    """The original context of a model with LongRoPE: beyond it no edit is possible (see `harness.models.rope`)."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) != "longrope":
        return None
    name = "original_max_position_embeddings"
    original = config.get(name) or rope.get(name)
    return int(original) if original else None


def _counter(folder: Path, adds_bos: bool) -> Count | None:
    if not any((folder / name).is_file() for name in checkpoint.TOKENIZER_FILES):
        return None

    def count(texts: Sequence[str]) -> list[int]:
        file = folder / "tokenizer.json"
        ids = _ids(file, texts) if file.is_file() else _slow_ids(folder, texts)
        return [len(of_text) + adds_bos for of_text in ids]

    return count


def _ids(file: Path, texts: Sequence[str]) -> list[list[int]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _slow_ids(folder: Path, texts: Sequence[str]) -> list[list[int]]:
    """Of tokenizers in older files, which only transformers reads; its import takes seconds."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return token_ids(tokenizer, texts, add_special_tokens=False)


def _bytes(texts: Sequence[str]) -> list[int]:
    """What a model with random weights and no tokenizer of its own reads, and the most that any other can make of a text."""
    return [len(text.encode()) + 1 for text in texts]
