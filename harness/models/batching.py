"""Rows of ids of different lengths as one rectangle, and back: padding, masks, positions, batches of like length."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")

PADDING_ID = 0
"""What stands in padded places. Any id would do: masks, never ids, say what is padding."""


@dataclass(frozen=True, slots=True)
class Padded:
    """A batch of rows of ids, batch × longest row.

    Attributes:
        ids_BT: the ids, `PADDING_ID` where there are none.
        mask_BT: 1 for an id, 0 for padding.
        positions_BT: place of each id in its own row, from 0; 0 in padded places.
    """

    ids_BT: "torch.Tensor"
    mask_BT: "torch.Tensor"
    positions_BT: "torch.Tensor"


def right_padded(rows: Sequence[Sequence[int]], device: "torch.device | str" = "cpu") -> Padded:
    """Rows flush left: the place of an id in the batch is its place in the row, so indices need no shift."""
    return _pad(rows, device, lambda length, width: 0)


def left_padded(rows: Sequence[Sequence[int]], device: "torch.device | str" = "cpu") -> Padded:
    """Rows flush right: all rows end in the last column, where decoding goes on."""
    return _pad(rows, device, lambda length, width: width - length)


def length_sorted(items: Sequence[Item], length: Callable[[Item], int], batch_size: int) -> Iterator[list[int]]:
    """Indices of `items` in batches of like length, shortest first; ties stay in order, so batches are reproducible."""
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
