"""Weight changes that can be undone bit for bit, and a weight hash that detects a single flipped bit."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
"""Number of 64-bit words hashed at a time; limits the extra memory to tens of megabytes."""


@dataclass(frozen=True, slots=True)
class _Original:
    owner: "torch.nn.Module"
    leaf: str
    parameter: "torch.nn.Parameter"
    storage: "torch.Tensor"
    copy: "torch.Tensor"
    requires_grad: bool


class Restorable(ABC):
    """A change to a model that can be undone."""

    @abstractmethod
    def restore(self) -> None:
        """Restore the model bit for bit. Idempotent."""

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Restore the model if the body raises; on success the changes stay."""
        try:
            yield
        except BaseException:
            self.restore()
            raise


class Snapshot(Restorable):
    """Copies of named parameters on their own device. `restore` undoes both in-place changes and replaced parameters."""

    def __init__(self, model: "torch.nn.Module", names: Sequence[str]) -> None:
        """Copy the parameters.

        Raises:
            AttributeError: for a name that is not a parameter of the model.
        """
        self._originals: list[_Original] = []
        for name in names:
            owner_path, _, leaf = name.rpartition(".")
            owner, parameter = model.get_submodule(owner_path), model.get_parameter(name)
            storage = parameter.data
            self._originals.append(
                _Original(owner, leaf, parameter, storage, storage.detach().clone(), parameter.requires_grad)
            )

    def change_norm(self) -> float:
        """Frobenius norm of the change of all parameters since they were copied."""
        import torch

        changes = (getattr(original.owner, original.leaf).detach() - original.copy for original in self._originals)
        return math.hypot(*(float(torch.linalg.vector_norm(change, dtype=torch.float64)) for change in changes))

    def restore(self) -> None:
        """Restore every parameter: the same object, the same storage, the same bits. Idempotent."""
        for original in self._originals:
            original.storage.copy_(original.copy)
            original.parameter.data = original.storage
            original.parameter.grad = None
            original.parameter.requires_grad_(original.requires_grad)
            setattr(original.owner, original.leaf, original.parameter)


def weight_hash(model: "torch.nn.Module") -> str:
    """Hash all parameters and buffers: names, types, shapes and every bit. The same on every device.

    Each 64-bit word is combined with its position and mixed by a bijection (splitmix64), and the words are summed modulo
    2⁶⁴: a change within a single word is always detected, any other goes unnoticed with probability 2⁻⁶⁴. Runs on the
    model's device.
    """
    return _hash(model, {})


def hash_and_fingerprint(model: "torch.nn.Module") -> tuple[str, dict[str, str]]:
    """`weight_hash` and `fingerprint` of a model from one pass over its weights."""
    sums: dict[int, int] = {}
    whole = _hash(model, sums)
    return whole, {path: _hash(module, sums) for path, module in model.named_modules() if _leaves(module)}


def _hash(module: "torch.nn.Module", sums: dict[int, int]) -> str:
    """Hash of a module by the sums of its tensors, by their `id`; those that are missing are computed and added."""
    import torch

    content = []
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if id(tensor) not in sums:
                sums[id(tensor)] = _checksum(tensor.detach())
            content.append((name, str(tensor.dtype), list(tensor.shape), sums[id(tensor)]))
    return digest(content)


def _checksum(tensor: "torch.Tensor") -> int:
    """Position-dependent 64-bit sum of a tensor's words."""
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
    """Logical right shift; torch's own is arithmetic."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


def fingerprint(model: "nn.Module") -> dict[str, str]:
    """Hash of each module with direct parameters, by path."""
    return hash_and_fingerprint(model)[1]


def wide_fingerprint(model: "nn.Module") -> dict[str, str]:
    """Hash of the parameters of each module as float32 at least, by path.

    Equal for a half-precision model and its float32 copy. Buffers do not count: they may depend on the precision.
    """
    from harness.models.precision import at_least_fp32

    return {
        path: digest({leaf: _checksum(at_least_fp32(value.detach())) for leaf, value in _leaves(module).items()})
        for path, module in model.named_modules()
        if _leaves(module)
    }


def changed(
    model: "nn.Module", unedited: Mapping[str, str], now: Mapping[str, str] | None = None
) -> "dict[str, Tensor]":
    """Current parameters, on their device, of all modules that differ from a fingerprint.

    Args:
        model: the model.
        unedited: the fingerprint.
        now: the model's present fingerprint, if it has been computed already.

    Raises:
        ValueError: if the set of modules differs; an edit changes parameters and adds none.
    """
    now = fingerprint(model) if now is None else now
    if now.keys() != unedited.keys():
        raise ValueError(f"modules with parameters were added or removed: {sorted(now.keys() ^ unedited.keys())[:3]}")
    return {
        f"{path}.{leaf}": parameter.detach()
        for path, found in now.items()
        if found != unedited[path]
        for leaf, parameter in _leaves(model.get_submodule(path)).items()
    }


class InstalledWeights(Restorable):
    """Install edited weights in an unedited model, until `restore`.

    Weights stored in a wider dtype than the model's, as closed-form edits of half-precision models need, are also applied in
    that dtype: inputs of the module are cast to it, and outputs are cast back.

    Args:
        model: the unedited model; changed in place.
        weights: as returned by `changed`, on any device.

    Raises:
        ValueError: for weights of a different model.
    """

    def __init__(self, model: "nn.Module", weights: "Mapping[str, Tensor]") -> None:
        self._snapshot = Snapshot(model, list(weights))
        self._handles: list[RemovableHandle] = []
        with self.restored_on_error():
            for path in dict.fromkeys(name.rpartition(".")[0] for name in weights):
                owner = model.get_submodule(path)
                self._install(owner, {leaf: weights[f"{path}.{leaf}"] for leaf in _leaves(owner)})

    def change_norm(self) -> float:
        """Frobenius norm of the difference of all installed parameters from the unedited ones."""
        return self._snapshot.change_norm()

    def restore(self) -> None:
        """Restore the unedited weights bit for bit and remove the casts. Idempotent."""
        while self._handles:
            self._handles.pop().remove()
        self._snapshot.restore()

    def _install(self, owner: "nn.Module", values: "Mapping[str, Tensor]") -> None:
        import torch

        leaves = _leaves(owner)
        (kept,), (wide,) = ({tensor.dtype for tensor in tensors.values()} for tensors in (leaves, values))
        if any(values[leaf].shape != parameter.shape for leaf, parameter in leaves.items()):
            raise ValueError(f"weights of {owner} have different shapes")
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


def widened(model: "nn.Module", paths: Iterable[str]) -> InstalledWeights:
    """Make the parameters of some modules float32, and compute these modules in it, until `restore`.

    Most entries of an edit of a half-precision model are smaller than the spacing of neighbouring bfloat16 numbers and
    would be lost to rounding. Nothing changes where the parameters are float32 or float64 already.
    """
    from harness.models.precision import at_least_fp32

    return InstalledWeights(
        model,
        {
            f"{path}.{leaf}": at_least_fp32(parameter.detach())
            for path in paths
            for leaf, parameter in _leaves(model.get_submodule(path)).items()
        },
    )


def _leaves(module: "nn.Module") -> "dict[str, nn.Parameter]":
    return dict(module.named_parameters(recurse=False))


FILE = "edited.safetensors"
CHANGE_NORMS = "change_norms"


class KeptWeights:
    """The edited weights: all parameters, by name, of every module that an edit changed.

    The file's metadata entry `change_norms` holds, as JSON, the Frobenius norm of each parameter's change.

    Args:
        model: the unedited model; it must be unedited again when the file is written.
    """

    def __init__(self, model: "nn.Module") -> None:
        self._model = model
        self._unedited = fingerprint(model)
        self._weights: Mapping[str, Tensor] = {}

    def take(self) -> None:
        """Copy the parameters that now differ from the unedited model."""
        now = changed(self._model, self._unedited)
        self._weights = {name: value.cpu().contiguous().clone() for name, value in now.items()}

    def write(self, file: Path) -> None:
        """Write the copied weights; the model must be unedited again."""
        from safetensors.torch import save_file

        norms = {name: self._change(name, value) for name, value in self._weights.items()}
        save_file(dict(self._weights), file, metadata={CHANGE_NORMS: json.dumps(norms)})

    def _change(self, name: str, value: "Tensor") -> float:
        unedited = self._model.get_parameter(name).detach().cpu()
        return float((value.double() - unedited.double()).norm())
