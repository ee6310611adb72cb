"""Weights that change and come back bit for bit, and a hash that notices a single bit."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.identity import digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle


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


def fingerprint(model: "nn.Module") -> dict[str, str]:
    """Hash of each module that has parameters of its own, by its path."""
    return {path: weight_hash(module) for path, module in model.named_modules() if _leaves(module)}


def changed(model: "nn.Module", unedited: Mapping[str, str]) -> "dict[str, Tensor]":
    """All parameters of the modules that differ from a fingerprint, as they are now and where they are.

    Raises:
        ValueError: for a model of other modules; an edit changes parameters and adds none.
    """
    now = fingerprint(model)
    if now.keys() != unedited.keys():
        raise ValueError(f"modules with parameters came or went: {sorted(now.keys() ^ unedited.keys())[:3]}")
    return {
        f"{path}.{leaf}": parameter.detach()
        for path, found in now.items()
        if found != unedited[path]
        for leaf, parameter in _leaves(model.get_submodule(path)).items()
    }


class InstalledWeights(Restorable):
    """Changed weights inside an unedited model, until `restore`.

    Weights that are kept in a wider type than the model's, as closed-form edits of half-precision models need it, are
    computed with in that type: what comes in is cast before and what goes out after.

    Args:
        model: unedited; it is changed in place.
        weights: as `changed` gave them, on any device.

    Raises:
        ValueError: for weights of another model.
    """

    def __init__(self, model: "nn.Module", weights: "Mapping[str, Tensor]") -> None:
        self._snapshot = Snapshot(model, list(weights))
        self._handles: list[RemovableHandle] = []
        with self.restored_on_error():
            for path in dict.fromkeys(name.rpartition(".")[0] for name in weights):
                owner = model.get_submodule(path)
                self._install(owner, {leaf: weights[f"{path}.{leaf}"] for leaf in _leaves(owner)})

    def restore(self) -> None:
        """The unedited weights, bit for bit, and no cast. May be called again."""
        while self._handles:
            self._handles.pop().remove()
        self._snapshot.restore()

    def _install(self, owner: "nn.Module", values: "Mapping[str, Tensor]") -> None:
        import torch

        leaves = _leaves(owner)
        (kept,), (wide,) = ({tensor.dtype for tensor in tensors.values()} for tensors in (leaves, values))
        if any(values[leaf].shape != parameter.shape for leaf, parameter in leaves.items()):
            raise ValueError(f"weights of {owner} have other shapes")
        for leaf, parameter in leaves.items():
            if kept == wide:
                with torch.no_grad():
                    parameter.copy_(values[leaf])
            else:
                value = values[leaf].to(parameter.device, copy=True)
                setattr(owner, leaf, torch.nn.Parameter(value, requires_grad=False))
        if kept != wide:
            self._handles += [
                owner.register_forward_pre_hook(lambda _, arguments: tuple(value.to(wide) for value in arguments)),
                owner.register_forward_hook(lambda _, arguments, output: output.to(kept)),
            ]


def _leaves(module: "nn.Module") -> "dict[str, nn.Parameter]":
    return dict(module.named_parameters(recurse=False))


FILE = "edited.safetensors"
CHANGE_NORMS = "change_norms"


class KeptWeights:
    """What an edit made of the weights: all parameters of every module that it changed, by name, as they are afterwards.

    The file's metadata has under `change_norms`, as JSON, the Frobenius norm of the change of each of them.

    Args:
        model: unedited; it must be so again when the file is written.
    """

    def __init__(self, model: "nn.Module") -> None:
        self._model = model
        self._unedited = fingerprint(model)
        self._weights: Mapping[str, Tensor] = {}

    def take(self) -> None:
        """Copy what differs from the unedited model now."""
        now = changed(self._model, self._unedited)
        self._weights = {name: value.cpu().contiguous().clone() for name, value in now.items()}

    def write(self, file: Path) -> None:
        """Write what was taken; the model is unedited again."""
        from safetensors.torch import save_file

        norms = {name: self._change(name, value) for name, value in self._weights.items()}
        save_file(dict(self._weights), file, metadata={CHANGE_NORMS: json.dumps(norms)})

    def _change(self, name: str, value: "Tensor") -> float:
        unedited = self._model.get_parameter(name).detach().cpu()
        return float((value.double() - unedited.double()).norm())
