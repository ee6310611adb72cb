"""Read the header of a GGUF file: its metadata and the types and shapes of its tensors, without their contents.

The package `gguf` takes seconds to half a minute for the same, because it makes an object of every token. The format is
described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Does not import torch.
"""

import math
import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.commands import list_around
from harness.errors import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
"""Tensors begin at multiples of this many bytes, unless the metadata say otherwise."""
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip
"""Name of a tensor type, values per block and bytes per block, by its number (ggml.h)."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as the header describes it: type, sizes with the fastest first, and place after the header in bytes."""

    kind: str
    sizes: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """Contents of a GGUF header: metadata and tensors of the model.

    Attributes:
        values: scalar metadata by key.
        lengths: length of each list of the metadata by key, such as `tokenizer.ggml.tokens`.
        tensors: by name.
    """

    values: Mapping[str, Any]
    lengths: Mapping[str, int]
    tensors: Mapping[str, Tensor]

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return str(self.values.get("general.architecture", "unnamed"))

    @property
    def vocab(self) -> int:
        """Number of tokens; 0 for a file without a tokenizer."""
        return self.lengths.get("tokenizer.ggml.tokens", 0)

    @property
    def quantisation(self) -> dict[str, int]:
        """Number of tensors by type, such as `Q4_1`."""
        return dict(Counter(tensor.kind for tensor in self.tensors.values()))

    @property
    def parameters(self) -> int:
        """Number of weights; tied matrices count once, because the file holds them once."""
        return sum(math.prod(tensor.sizes) for tensor in self.tensors.values())


def read_header(file: Path) -> Header:
    """Read the header of a GGUF file, and check the length of the file against it.

    Raises:
        UserError: if the file is missing, truncated, of an unknown version, or not GGUF.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file", fix=list_around(file))
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Cursor(content).header()
    except (ValueError, struct.error) as error:
        raise UserError(f"{file} is truncated or not a GGUF file: {error}", fix="download it again") from None


class _Cursor:
    """Reads values one after the other."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at, self._order = content, 0, "<"

    def header(self) -> Header:
        """Read a whole header.

        Raises:
            ValueError, struct.error: if it is none, or the file ends too early.
        """
        if self._content[:4] != MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._at = len(MAGIC)
        version = int(self._scalar("I"))
        if version & 0xFFFF == 0:  # written on a big-endian machine
            self._order, self._at = ">", len(MAGIC)
            version = int(self._scalar("I"))
        if version not in VERSIONS:
            raise ValueError(f"version {version}, not {' or '.join(map(str, VERSIONS))}")
        n_tensors, n_values = int(self._scalar("Q")), int(self._scalar("Q"))
        values: dict[str, Any] = {}
        lengths: dict[str, int] = {}
        for _ in range(n_values):
            key, kind = self._text(), int(self._scalar("I"))
            if kind == _ARRAY:
                lengths[key] = self._skip_list()
            else:
                values[key] = self._value(kind)
        tensors = dict(self._tensor() for _ in range(n_tensors))
        alignment = int(values.get("general.alignment", ALIGNMENT))
        start = -(-self._at // alignment) * alignment
        end = start + max((tensor.offset + tensor.n_bytes for tensor in tensors.values()), default=0)
        if tensors and end > len(self._content):
            raise ValueError(f"{len(self._content):,} bytes, but its tensors need {end:,}")
        return Header(values, lengths, tensors)

    def _scalar(self, code: str) -> Any:
        layout = f"{self._order}{code}"
        (value,) = struct.unpack_from(layout, self._content, self._at)
        self._at += struct.calcsize(layout)
        return value

    def _text(self) -> str:
        length = int(self._scalar("Q"))
        end = self._at + length
        if end > len(self._content):
            raise ValueError("a text reaches beyond its end")
        text = self._content[self._at : end].decode(errors="replace")
        self._at = end
        return text

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind not in _SCALARS:
            raise ValueError(f"unknown type {kind} of a value")
        return self._scalar(_SCALARS[kind])

    def _skip_list(self) -> int:
        """Pass over a list, and return its length."""
        kind, length = int(self._scalar("I")), int(self._scalar("Q"))
        if kind in _SCALARS:
            self._at += length * struct.calcsize(f"{self._order}{_SCALARS[kind]}")
        elif kind == _STRING:
            size = struct.Struct(f"{self._order}Q")
            for _ in range(length):
                self._at += size.size + size.unpack_from(self._content, self._at)[0]
        elif kind == _ARRAY:
            for _ in range(length):
                self._skip_list()
        else:
            raise ValueError(f"unknown type {kind} of a list")
        return length

    def _tensor(self) -> tuple[str, Tensor]:
        name = self._text()
        sizes = tuple(int(self._scalar("Q")) for _ in range(int(self._scalar("I"))))
        number, offset = int(self._scalar("I")), int(self._scalar("Q"))
        if number not in TYPES:
            raise ValueError(f"tensor {name} has the unknown type {number}")
        kind, block, n_bytes = TYPES[number]
        return name, Tensor(kind, sizes, offset, math.prod(sizes) // block * n_bytes)
