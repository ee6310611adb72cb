"""Count what would make the host wait for a GPU, while everything runs on the CPU."""

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

_ATEN = torch.ops.aten
_WAITING = {
    _ATEN._local_scalar_dense.default,  # item(), bool(), int(), float()
    _ATEN.equal.default,
    _ATEN.nonzero.default,
    _ATEN.masked_select.default,
    _ATEN._unique2.default,
    _ATEN.unique_dim.default,
    _ATEN.repeat_interleave.Tensor,
}
"""Operations whose result, or its shape, the host needs."""

_READING = ("tolist", "cpu", "numpy")
"""Methods that read a tensor without dispatching an operation if it is on the CPU already."""


class HostRoundTrips(TorchDispatchMode):
    """Counts them while it is active, but not within forward passes of the given models.

    Attributes:
        found: the operations, in order.
    """

    def __init__(self, models):
        super().__init__()
        self.found = []
        self._models = models
        self._running = 0

    def __enter__(self):
        self._hooks = []
        for model in self._models:
            self._hooks.append(model.register_forward_pre_hook(lambda *_: self._run(1)))
            self._hooks.append(model.register_forward_hook(lambda *_: self._run(-1)))
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in _WAITING or _has_mask_as_index(func, args):
            self._note(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))

    def read(self, name, method):
        def counted(tensor, *args, **kwargs):
            self._note(name)
            return method(tensor, *args, **kwargs)

        return counted

    def _note(self, name):
        if not self._running:
            self.found.append(name)

    def _run(self, change):
        self._running += change


@contextmanager
def host_round_trips(*models):
    """The round trips within the block and outside forward passes of `models`, as a list that grows."""
    counter = HostRoundTrips(models)
    with pytest.MonkeyPatch.context() as patch:
        for name in _READING:
            patch.setattr(torch.Tensor, name, counter.read(name, getattr(torch.Tensor, name)))
        with counter:
            yield counter.found


def _has_mask_as_index(func, args):
    if func not in (_ATEN.index.Tensor, _ATEN.index_put_.default, _ATEN.index_put.default):
        return False
    return any(index is not None and index.dtype == torch.bool for index in args[1])
