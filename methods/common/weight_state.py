"""The weights that edits have changed: found by comparison, kept in a file, put back into an unedited model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from methods.common.weights import Restorable, Snapshot, weight_hash

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle


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
