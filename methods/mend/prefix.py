"""Cache of residual streams: blocks below the edited ones are fixed during training, so each sequence passes through them once."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from harness.models.batching import length_sorted
from harness.models.loaded import LoadedModel
from harness.models.submodels import Streams, streams

BUDGET_BYTES = 16 << 30
"""Host memory for cached residual streams; once it is used up, further sequences are recomputed every time."""


class PrefixCache:
    """Residual streams of sequences at the input of a block.

    Args:
        model: its blocks below `layer` must not change.
        layer: the block.
    """

    def __init__(self, model: LoadedModel, layer: int) -> None:
        self._model, self._layer = model, layer
        self._kept: dict[tuple[int, ...], Tensor] = {}
        self._bytes = 0

    def fill(self, rows: Iterable[tuple[int, ...]], batch: int) -> None:
        """Compute rows ahead of their use, in batches of similar length, until the budget is used up.

        Args:
            rows: ids of each sequence; duplicates are computed once.
            batch: rows per forward pass.
        """
        distinct = list(dict.fromkeys(rows))
        for chosen in length_sorted(distinct, len, batch):
            self.streams([distinct[index] for index in chosen])
            if distinct[chosen[-1]] not in self._kept:
                return

    def streams(self, rows: Sequence[tuple[int, ...]]) -> Streams:
        """The rows as one right-padded batch; uncached rows are computed in a single forward pass."""
        new = [ids for ids in dict.fromkeys(rows) if ids not in self._kept]
        found = {ids: self._kept[ids] for ids in rows if ids in self._kept}
        if new:
            made = streams(self._model, new, self._layer).residual_BTD
            for ids, residual_TD in zip(new, made, strict=True):
                found[ids] = residual_TD[: len(ids)]
                self._keep(ids, found[ids])
        return self._batch([found[ids] for ids in rows])

    def _keep(self, ids: tuple[int, ...], residual_TD: Tensor) -> None:
        size = residual_TD.numel() * residual_TD.element_size()
        if self._bytes + size <= BUDGET_BYTES:
            self._kept[ids] = residual_TD.to("cpu", copy=True)
            self._bytes += size

    def _batch(self, residuals: Sequence[Tensor]) -> Streams:
        device = self._model.device
        lengths_B1 = torch.tensor([len(residual_TD) for residual_TD in residuals], device=device)[:, None]
        residual_BTD = torch.nn.utils.rnn.pad_sequence(
            [residual_TD.to(device, non_blocking=True) for residual_TD in residuals], batch_first=True
        )
        columns_1T = torch.arange(residual_BTD.shape[1], device=device)[None]
        mask_BT = columns_1T < lengths_B1
        return Streams(residual_BTD, mask_BT.long(), columns_1T * mask_BT)
