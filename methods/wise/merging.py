"""TIES: several changes of one matrix become one, with as little interference as can be (Yadav et al. 2023)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def ties(changes: Sequence[Tensor], weights: Sequence[float], density: float, is_cut: bool = False) -> Tensor:
    """Trim each change to its largest entries, elect a sign per entry, average those that have it.

    Args:
        changes: of equal shape.
        weights: what each counts for, in the election and in the mean.
        density: share of the entries of each that is kept, by magnitude; entries as large as the smallest of these stay.
        is_cut: of entries as large as the smallest, only as many stay as the share has room for: which ones, `topk` says.

    Returns:
        Zero where nothing is left. An election that ends in zero elects plus.
    """
    trim = _first if is_cut else _largest
    trimmed = [trim(change, density) * weight for change, weight in zip(changes, weights, strict=True)]
    is_positive = torch.stack(trimmed).sum(0) >= 0
    total, share = torch.zeros_like(changes[0]), torch.zeros_like(changes[0])
    for change, weight in zip(trimmed, weights, strict=True):
        agrees = torch.where(is_positive, change > 0, change < 0)
        total += change * agrees
        share += weight * agrees
    return torch.where(share > 0, total / share, 0.0)


def _largest(change: Tensor, density: float) -> Tensor:
    """The change without its smaller entries."""
    sizes = change.abs()
    # not kthvalue: before torch 2.10 it has no deterministic kernel on CUDA, and fails where one is demanded
    smallest = sizes.flatten().topk(_kept(change, density), sorted=False).values.min()
    return change * (sizes >= smallest)


def _first(change: Tensor, density: float) -> Tensor:
    """As `_largest`, cut at the share."""
    chosen = change.abs().flatten().topk(_kept(change, density)).indices
    return torch.zeros_like(change).flatten().index_copy(0, chosen, change.flatten()[chosen]).reshape(change.shape)


def _kept(change: Tensor, density: float) -> int:
    return max(1, int(density * change.numel()))
