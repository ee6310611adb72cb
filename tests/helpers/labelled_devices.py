"""Two devices on a machine with one: tensors carry labels, and an operation on tensors of two devices fails as on GPUs.

A label is a device of the CPU with an index. Tensors without an explicit device are on the host, `cpu`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakIdKeyDictionary

HOST, HOME, OTHER = torch.device("cpu"), torch.device("cpu", 1), torch.device("cpu", 2)
_GETTERS = {Tensor.device.__get__}
_MOVES = {"to", "cpu", "copy_"}
_INDEXED = {"__getitem__", "__setitem__"}
_CROSSING = {"grad", "backward", "_make_subclass", "_has_compatible_shallow_copy_type"}
"""What takes tensors of several devices: gradients flow between them."""


class LabelledDevices(TorchFunctionMode):
    """Inside the body, tensors have the labels of the devices that they would be on.

    Args:
        module: a model whose parameters and buffers are on the devices of `places`.
        places: device by module path.
    """

    def __init__(self, module: nn.Module, places: Mapping[str, torch.device]) -> None:
        super().__init__()
        self._labels = WeakIdKeyDictionary()
        self._kept: list[Tensor] = []
        self._moved_to: dict[int, torch.device] = {}
        """By address, for parameters that are made of a tensor behind the mode's back."""
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            found = [path for path in places if not path or name.startswith(f"{path}.")]
            self._labels[tensor] = places[max(found, key=len)]

    def __torch_function__(self, function, types, arguments=(), named=None):
        named = dict(named or {})
        name = getattr(function, "__name__", "")
        if function in _GETTERS:
            return self._of(arguments[0])
        if name == "__set__" and len(arguments) > 1 and isinstance(arguments[1], Tensor):
            self._labels[arguments[0]] = self._of(arguments[1])
            return function(*arguments, **named)
        tensors = [leaf for leaf in tree_flatten((arguments, named))[0] if isinstance(leaf, Tensor)]
        if name == "to":
            return self._moved(function, arguments, named)
        if "device" in named and named["device"] is not None:
            place = torch.device(named["device"])
            return self._labelled(function(*arguments, **{**named, "device": HOST}), place)
        if name == "cpu":
            return self._labelled(arguments[0].clone(), HOST)
        if function is torch.autograd.grad:
            inputs = named.get("inputs", arguments[1] if len(arguments) > 1 else None)
            inputs = [inputs] if isinstance(inputs, Tensor) else inputs
            gradients = function(*arguments, **named)
            for gradient, of in zip(gradients, inputs, strict=True):
                self._labels[gradient] = self._of(of)
            return gradients
        place = self._common(name, tensors)
        result = function(*arguments, **named)
        return result if name in _MOVES else self._labelled(result, place)

    def _of(self, tensor: Tensor) -> torch.device:
        found = self._labels.get(tensor)
        return self._moved_to.get(tensor.data_ptr(), HOST) if found is None else found

    def _common(self, name: str, tensors: list[Tensor]) -> torch.device:
        """The device of an operation; numbers, and indices on the host, may come from anywhere."""
        placed = [tensor for tensor in tensors if tensor.ndim and not isinstance(tensor, torch.Size)]
        if name in _INDEXED:
            placed = [tensor for n, tensor in enumerate(placed) if n == 0 or self._of(tensor) != HOST]
        places = list(dict.fromkeys(map(self._of, placed)))
        if len(places) > 1 and name not in _CROSSING | _MOVES:
            raise RuntimeError(f"{name}: tensors are on {' and '.join(map(str, places))}")
        return places[0] if places else (self._of(tensors[0]) if tensors else HOST)

    def _moved(self, function, arguments, named):
        tensor, *rest = arguments
        place = named.get("device")
        kept = []
        for each in rest:
            if isinstance(each, Tensor):
                place = self._of(each)
                kept.append(each.dtype)
            elif isinstance(each, (torch.device, str)):
                place = torch.device(each)
            elif isinstance(each, torch.dtype):
                kept.append(each)
        named.pop("device", None)
        place = self._of(tensor) if place is None else torch.device(place)
        result = function(tensor, *kept, **named) if kept or named else tensor
        if place != self._of(tensor) and result is tensor:
            result = tensor.clone()
        if result is not tensor and result.numel():
            self._kept.append(result)
            self._moved_to[result.data_ptr()] = place
        return self._labelled(result, place)

    def _labelled(self, result, place):
        def label(leaf):
            if isinstance(leaf, Tensor):
                self._labels[leaf] = place
            return leaf

        return tree_map(label, result)
