"""A tokenizer's vocabulary as plain data: token strings, the bytes they stand for, and the roles of special tokens."""

import codecs
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Vocabulary:
    """Token strings of one tokenizer.

    Attributes:
        ids: id of each token string, including added and special tokens.
        byte_level: whether strings encode bytes in GPT-2's alphabet (`Ġ` is a space); otherwise they are SentencePiece
            pieces (`▁` is a space, `<0x41>` a byte).
        special: tokens without text: control tokens and the unknown token.
        roles: ids of `bos`, `eos` and `unk`, if the tokenizer has them.
    """

    ids: Mapping[str, int]
    byte_level: bool
    special: frozenset[str] = frozenset()
    roles: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "Vocabulary":
        """The vocabulary of a Hugging Face tokenizer.

        Raises:
            ValueError: if it has no `tokenizers` backend, or its decoder is neither byte-level nor SentencePiece-like.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"{type(tokenizer).__name__} has no `tokenizers` backend")
        decoder = json.dumps(json.loads(backend.to_str())["decoder"], ensure_ascii=False)
        if '"ByteLevel"' not in decoder and "▁" not in decoder:
            raise ValueError(
                f"{type(tokenizer).__name__} is neither byte-level nor SentencePiece-like (▁): decoder {decoder}"
            )
        roles = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "unk": tokenizer.unk_token_id}
        return cls(
            ids=dict(tokenizer.get_vocab()),
            byte_level='"ByteLevel"' in decoder,
            special=frozenset(tokenizer.all_special_tokens),
            roles={role: int(token_id) for role, token_id in roles.items() if token_id is not None},
        )

    def token_bytes(self, token: str) -> bytes:
        """The bytes that a token string stands for; a special token stands for its own name."""
        if self.byte_level:
            alphabet = _byte_alphabet()
            spelled = all(letter in alphabet for letter in token)
            return bytes(alphabet[letter] for letter in token) if spelled else token.encode()
        byte = _BYTE_PIECE.fullmatch(token)
        return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()

    def is_byte_piece(self, token: str) -> bool:
        """Whether a SentencePiece token is a byte-fallback token such as `<0x41>`."""
        return not self.byte_level and _BYTE_PIECE.fullmatch(token) is not None

    @cached_property
    def text_bytes(self) -> Mapping[int, bytes]:
        """The bytes that each id adds to a text; special tokens add none."""
        return {i: b"" if token in self.special else self.token_bytes(token) for token, i in self.ids.items()}

    def spell(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids append to a preceding text. Ids without a token (table padding) add nothing."""
        return b"".join(self.text_bytes.get(i, b"") for i in ids)

    def spell_from_start(self, ids: Iterable[int], text: str = "") -> bytes:
        """The bytes of ids at the start of a text, without the leading space that many tokenizers insert.

        SentencePiece tokenizers do, and byte-level ones with `add_prefix_space`. None is inserted before a text that begins
        with a space; with SentencePiece, such a text loses that space here.

        Args:
            ids: token ids.
            text: the text that the ids begin, or its beginning.
        """
        spelled = self.spell(ids)
        is_its_own = self.byte_level and text.startswith(" ")
        return spelled if is_its_own else spelled.removeprefix(b" ")


def readable(raw: bytes) -> tuple[str, bool]:
    """Decode UTF-8 bytes that may end inside a character.

    Returns:
        The text without an incomplete last character (invalid bytes become U+FFFD), and whether there was one.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(raw, final=False)
    return text, bool(decoder.getstate()[0])


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's byte alphabet: printable Latin-1 characters map to themselves, all other bytes to U+0100 onwards."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
