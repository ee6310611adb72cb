"""Batches aligned at the subject's last token, so that the shared prefix is computed only once.

An intervention at a subject's last token does not affect the tokens before it. Rows are padded on both sides so that
these tokens, the pivots, share one column. Keys and values of the columns before it are computed once and cached; every
further pass runs only the few columns from the pivot on.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from harness.models.batching import PADDING_ID
from harness.models.routed import matrix, output_replaced
from harness.models.submodels import part
from methods.common.masks import LayerMasks

if TYPE_CHECKING:
    from torch import nn

    from harness.models.loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class PivotRow:
    """A sequence with the position of an intervention.

    Attributes:
        ids: token ids.
        pivot: index of the subject's last token.
        labels: ids to be predicted at the last `len(labels)` positions of the row; empty if nothing is predicted.
    """

    ids: tuple[int, ...]
    pivot: int
    labels: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stream:
    """Residual streams of aligned rows at the input of a block.

    Attributes:
        residual_BTD: the residual stream, without gradient.
        masks: attention masks, T × T for each row; padding sees only itself.
        positions_BT: position of each token in its row; 0 for padding.
        pivot: the common pivot column.
    """

    residual_BTD: Tensor
    masks: LayerMasks
    positions_BT: Tensor
    pivot: int

    @property
    def at_pivot_BD(self) -> Tensor:
        """The residual stream at the pivots."""
        return self.residual_BTD[:, self.pivot]

    def rows(self, index: Sequence[int] | slice) -> "Stream":
        """Some of the rows."""
        return Stream(self.residual_BTD[index], self.masks[index], self.positions_BT[index], self.pivot)

    def until(self, end: int) -> "Stream":
        """The first `end` columns; attention is causal, so they do not depend on the later ones."""
        masks = self.masks[:, :, :end, :end]
        return Stream(self.residual_BTD[:, :end], masks, self.positions_BT[:, :end], self.pivot)


@torch.no_grad()
def enter(model: "LoadedModel", rows: Sequence[PivotRow], layer: int) -> Stream:
    """Align the rows and run them up to the input of block `layer`."""
    pivot = max(row.pivot for row in rows)
    width = pivot + max(len(row.ids) - row.pivot for row in rows)
    ids_BT = torch.full((len(rows), width), PADDING_ID)
    positions_BT = torch.zeros_like(ids_BT)
    is_token_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for index, row in enumerate(rows):
        columns = slice(pivot - row.pivot, pivot - row.pivot + len(row.ids))
        ids_BT[index, columns] = torch.tensor(row.ids)
        positions_BT[index, columns] = torch.arange(len(row.ids))
        is_token_BT[index, columns] = True
    positions_BT = positions_BT.to(model.device)
    residual_BTD = model.first_stream(ids_BT.to(model.device), positions_BT)
    stream = Stream(residual_BTD, _masks(model, is_token_BT.to(model.device), residual_BTD.dtype), positions_BT, pivot)
    return advance(model, stream, 0, layer)


@torch.no_grad()
def advance(model: "LoadedModel", stream: Stream, start: int, stop: int) -> Stream:
    """Run blocks `start` to `stop` - 1 on a stream at the input of block `start`."""
    residual_BTD = part(model, start, stop)(stream.residual_BTD, stream.masks.argument, stream.positions_BT)
    return Stream(residual_BTD, stream.masks, stream.positions_BT, stream.pivot)


@dataclass(slots=True)
class Captured:
    """Inputs (keys, B × K) and outputs (values, B × V) of a value matrix at the pivots."""

    keys_BK: Tensor
    values_BV: Tensor


@contextmanager
def capturing(model: "LoadedModel", layer: int, pivot: int) -> Iterator[list[Captured]]:
    """Record keys and values at column `pivot` for every pass through a layer's value matrix."""
    passes: list[Captured] = []

    def record(module: "nn.Module", arguments: tuple[Tensor, ...], output: Tensor) -> None:
        seen = (arguments[0][:, pivot].detach().clone(), output[:, pivot].detach().clone())
        passes.append(Captured(*(values.to(model.device) for values in seen)))

    handle = model.module(model.layout.value_matrix, layer).register_forward_hook(record)
    try:
        yield passes
    finally:
        handle.remove()


def through(model: "LoadedModel", stream: Stream, layer: int) -> tuple[Stream, Captured]:
    """Run one block; return the stream after it, and the keys and values of its value matrix at the pivots."""
    with capturing(model, layer, stream.pivot) as passes:
        behind = advance(model, stream, layer, layer + 1)
    return behind, passes[0]


class Suffix:
    """The columns of a batch from the pivot on, for repeated passes through the last blocks of a model.

    Args:
        model: its blocks from `layer` on must not change.
        stream: the rows at the input of block `layer`.
        layer: the first block to run.
        at_value: add vectors to the output of that block's value matrix instead of to the residual stream before it.
    """

    def __init__(self, model: "LoadedModel", stream: Stream, layer: int, at_value: bool = False) -> None:
        self._matrix = matrix(model, layer) if at_value else None
        self._blocks: Callable[..., Any] = part(model, layer, model.n_layers).base
        self._past: dict[int, tuple[Tensor, Tensor]] = {}
        pivot = stream.pivot
        before = stream.until(pivot)
        if pivot:
            with torch.no_grad():
                self._run(before.residual_BTD, before.masks, before.positions_BT, _Recording(self._past))
        self._residual_BSD = stream.residual_BTD[:, pivot:].clone()
        self._masks = stream.masks[:, :, pivot:]
        self._positions_BS = stream.positions_BT[:, pivot:].clone()

    def run(self, delta_BD: Tensor) -> Tensor:
        """Add a vector at each row's pivot and run the blocks.

        Returns:
            The residual stream after the last block, before the final norm, B × S × D; the pivot is column 0.
        """

        def moved(values_BSD: Tensor) -> Tensor:
            work = torch.promote_types(values_BSD.dtype, delta_BD.dtype)
            first_B1D = (values_BSD[:, :1].to(work) + delta_BD[:, None].to(work)).to(values_BSD.dtype)
            return torch.cat([first_B1D, values_BSD[:, 1:]], dim=1)

        past = _Continuing(self._past)
        if self._matrix is None:
            return self._run(moved(self._residual_BSD), self._masks, self._positions_BS, past)
        with output_replaced(self._matrix, lambda _, outputs_BSD: moved(outputs_BSD)):
            return self._run(self._residual_BSD, self._masks, self._positions_BS, past)

    def keep(self, rows_B: Tensor) -> None:
        """Keep only the rows with these indices."""
        for layer, (keys, values) in self._past.items():
            kept_B = rows_B.to(keys.device)
            self._past[layer] = (keys[kept_B], values[kept_B])
        self._residual_BSD, self._masks = self._residual_BSD[rows_B], self._masks[rows_B]
        self._positions_BS = self._positions_BS[rows_B]

    def _run(self, residual_BSD: Tensor, masks: LayerMasks, positions_BS: Tensor, past: "_Past") -> Tensor:
        output = self._blocks(
            inputs_embeds=residual_BSD,
            attention_mask=masks.argument,
            position_ids=positions_BS,
            past_key_values=past,
            use_cache=True,
        )
        return cast(Tensor, output[0])


class _Past(ABC):
    """The minimal key-value cache interface that attention needs; it never grows and makes no persistent copy."""

    is_compileable = False

    def __init__(self, kept: dict[int, tuple[Tensor, Tensor]]) -> None:
        self.kept = kept

    @abstractmethod
    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Keys and values to attend to, given a layer's new ones (B × heads × tokens × head size)."""

    def get_seq_length(self, *_: object) -> int:
        """Number of cached columns."""
        return next((keys.shape[2] for keys, _ in self.kept.values()), 0)


class _Recording(_Past):
    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        self.kept[layer] = (keys, values)
        return keys, values

    def get_seq_length(self, *_: object) -> int:
        return 0


class _Continuing(_Past):
    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        if layer not in self.kept:
            return keys, values
        past_keys, past_values = self.kept[layer]
        return torch.cat([past_keys, keys], dim=2), torch.cat([past_values, values], dim=2)


def _masks(model: "LoadedModel", is_token_BT: Tensor, dtype: torch.dtype) -> LayerMasks:
    """Causal masks, T × T for each row. A padded query sees itself, because a softmax over no keys is NaN."""
    columns_T = torch.arange(is_token_BT.shape[1], device=is_token_BT.device)
    back_TT = columns_T[:, None] - columns_T
    is_seen_BTT = (back_TT >= 0) & is_token_BT[:, None, :] | (back_TT == 0)
    return LayerMasks.of(model.config, is_seen_BTT, back_TT, dtype)
