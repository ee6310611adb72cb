"""Weights that change and come back bit for bit, and a hash that notices a single bit."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.canonical import digest

if TYPE_CHECKING:
    import torch

CHUNK_WORDS = 1 << 20
"""Words of 64 bits that are hashed at a time: bounds the extra memory to some tens of megabytes."""


@dataclass(frozen=True, slots=True)
class _Original:
    owner: "torch.nn.Module"
    leaf: str
    parameter: "torch.nn.Parameter"
    storage: "torch.Tensor"
    copy: "torch.Tensor"
    requires_grad: bool


class Restorable(ABC):
    """A change of a model that can be taken back."""

    @abstractmethod
    def restore(self) -> None:
        """The model as it was, bit for bit. May be called again."""

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Run the body; if it raises, restore before the exception goes on. On success the changes stay."""
        try:
            yield
        except BaseException:
            self.restore()
            raise


class Snapshot(Restorable):
    """Copies of named parameters on their own device. `restore` undoes in-place changes and replacements alike."""

    def __init__(self, model: "torch.nn.Module", names: Sequence[str]) -> None:
        """Copy the parameters.

        Raises:
            AttributeError: for a name that is no parameter of the model.

        """
        self._originals: list[_Original] = []
        for name in names:
            owner_path, _, leaf = name.rpartition(".")
            owner, parameter = model.get_submodule(owner_path), model.get_parameter(name)
            storage = parameter.data
            self._originals.append(
                _Original(owner, leaf, parameter, storage, storage.detach().clone(), parameter.requires_grad)
            )

    def restore(self) -> None:
        """Put every parameter back: the same object, the same storage, the same bits. May be called again."""
        for original in self._originals:
            original.storage.copy_(original.copy)
            original.parameter.data = original.storage
            original.parameter.grad = None
            original.parameter.requires_grad_(original.requires_grad)
            setattr(original.owner, original.leaf, original.parameter)


@contextmanager
def edited(model: "torch.nn.Module", names: Sequence[str]) -> Iterator[Snapshot]:
    """Change the named parameters inside the body; they come back when it ends, exception or not."""
    snapshot = Snapshot(model, names)
    try:
        yield snapshot
    finally:
        snapshot.restore()


def weight_hash(model: "torch.nn.Module") -> str:
    """Hash of all parameters and buffers: names, types, shapes and every bit. The same on every device.

    Each 64-bit word is mixed with its position by a bijection (splitmix64) and the words are summed modulo 2⁶⁴, so a
    change within one word always shows and any other goes unnoticed with probability 2⁻⁶⁴. Runs on the model's device.
    """
    import torch

    with torch.no_grad():
        return digest(
            [
                (name, str(tensor.dtype), list(tensor.shape), _checksum(tensor.detach()))
                for named in (model.named_parameters(), model.named_buffers())
                for name, tensor in named
            ]
        )


def _checksum(tensor: "torch.Tensor") -> int:
    """Position-dependent sum of a tensor's words, an integer of 64 bits."""
    import torch

    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    total = torch.zeros((), dtype=torch.long, device=tensor.device)
    for start in range(0, flat.numel(), CHUNK_WORDS * 8):
        part = flat[start : start + CHUNK_WORDS * 8]
        if part.numel() % 8 or part.storage_offset() % 8:
            padded = torch.zeros((part.numel() + 7) // 8 * 8, dtype=torch.uint8, device=part.device)
            padded[: part.numel()] = part
            part = padded
        words = part.view(torch.long)
        places = torch.arange(start // 8, start // 8 + words.numel(), device=words.device)
        total += _mix(words + places * _signed(0x9E3779B97F4A7C15)).sum()
    return int(total.item())


def _mix(words: "torch.Tensor") -> "torch.Tensor":
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): a bijection of 64-bit words."""
    words = (words ^ _shift_right(words, 30)) * _signed(0xBF58476D1CE4E5B9)
    words = (words ^ _shift_right(words, 27)) * _signed(0x94D049BB133111EB)
    return words ^ _shift_right(words, 31)


def _shift_right(words: "torch.Tensor", bits: int) -> "torch.Tensor":
    """Logical shift; torch's own repeats the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word
