"""Batching of id sequences: padding, masks, positions, and length-sorted batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")

PADDING_ID = 0
"""Id at padded positions. Any id would do: padding is identified by masks, never by ids."""


@dataclass(frozen=True, slots=True)
class Padded:
    """A padded batch of id sequences, batch × longest row.

    Attributes:
        ids_BT: the ids, `PADDING_ID` at padded positions.
        mask_BT: 1 for an id, 0 for padding.
        positions_BT: index of each id in its own row, from 0; 0 at padded positions.
    """

    ids_BT: "torch.Tensor"
    mask_BT: "torch.Tensor"
    positions_BT: "torch.Tensor"


def right_padded(rows: Sequence[Sequence[int]], device: "torch.device | str" = "cpu") -> Padded:
    """Pad rows on the right: an index into a row is also its column in the batch."""
    return _pad(rows, device, lambda length, width: 0)


def left_padded(rows: Sequence[Sequence[int]], device: "torch.device | str" = "cpu") -> Padded:
    """Pad rows on the left: all rows end in the last column, where decoding continues."""
    return _pad(rows, device, lambda length, width: width - length)


def length_sorted(items: Sequence[Item], length: Callable[[Item], int], batch_size: int) -> Iterator[list[int]]:
    """Batch indices of `items` by similar length, shortest first; ties keep their order, so batches are reproducible."""
    if batch_size < 1:
        raise ValueError(f"batch size {batch_size}")
    order = sorted(range(len(items)), key=lambda index: length(items[index]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _pad(rows: Sequence[Sequence[int]], device: "torch.device | str", offset: Callable[[int, int], int]) -> Padded:
    import torch

    if not rows or not all(rows):
        raise ValueError("a batch needs rows and every row an id")
    width = max(map(len, rows))
    ids, mask, positions = torch.full((3, len(rows), width), PADDING_ID, dtype=torch.long).unbind()
    for index, row in enumerate(rows):
        start = offset(len(row), width)
        ids[index, start : start + len(row)] = torch.tensor(row)
        mask[index, start : start + len(row)] = 1
        positions[index, start : start + len(row)] = torch.arange(len(row))
    return Padded(ids.to(device), mask.to(device), positions.to(device))
