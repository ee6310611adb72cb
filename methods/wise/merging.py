"""Build the routed memories from finished shards, merging them with TIES.

TIES combines several weight changes into one with little interference (Yadav et al. 2023).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from methods.common.largest import smallest_of_largest
from methods.wise.hparams import WiseHparams
from methods.wise.memory import SideMemory
from methods.wise.training import Shards

_EARLIER = 0.6
"""Weight of an already merged memory when others are merged into it, as in WISE's public code; the others share the rest."""


def settled(shards: Shards, hparams: WiseHparams) -> Shards:
    """Merge the shards of every `merge_freq` edits, which no later edit changes.

    Returns:
        With `retrieve`, one merged memory per group of shards; with `merge`, one for all groups, each merged into that of the
        earlier ones. Shards since then, and an unfinished one of fewer than `save_freq` edits, are left as they are.
    """
    kept, sides = shards.merged, shards.sides
    size = hparams.merge_freq // hparams.save_freq
    for _ in range(_finished(shards, hparams) // size):
        group, sides = sides[:size], sides[size:]
        kept = (*kept, merged(group, hparams)) if hparams.memory == "retrieve" else (merged(group, hparams, *kept),)
    return replace(shards, merged=kept, sides=sides)


def assembled(shards: Shards, hparams: WiseHparams) -> list[SideMemory]:
    """Assemble the memories after all edits from the result of `settled`.

    Returns:
        `retrieve`: one memory per `merge_freq` edits, then shards finished since, then the unfinished one.
        `merge`: one memory for all finished shards, merged again after every `merge_freq` edits and at the end, then the
        unfinished one.
    """
    finished = _finished(shards, hparams)
    if hparams.memory == "retrieve" or not finished:
        return [*shards.merged, *shards.sides]
    return [merged(shards.sides[:finished], hparams, *shards.merged), *shards.sides[finished:]]


def _finished(shards: Shards, hparams: WiseHparams) -> int:
    """Number of shards that have all of their edits and are not merged yet."""
    return len(shards.sides) - (shards.edits % hparams.save_freq > 0)


def merged(group: Sequence[SideMemory], hparams: WiseHparams, earlier: SideMemory | None = None) -> SideMemory:
    """Merge several memories into one, with the smallest of their thresholds."""
    sides = [*group] if earlier is None else [earlier, *group]
    share = 1.0 if earlier is None else 1 - _EARLIER
    weights = [_EARLIER] * (earlier is not None) + [share / len(group)] * len(group)
    # with W' stored in the model's precision, many entries of W' - W have equal magnitude (merge/utils.py:15)
    is_cut = hparams.implementation == "faithful-easyedit"
    change_DK = ties([side.change_DK for side in sides], weights, hparams.density, is_cut)
    return SideMemory(change_DK, min(side.threshold for side in sides))


def ties(changes: Sequence[Tensor], weights: Sequence[float], density: float, is_cut: bool = False) -> Tensor:
    """Trim each change to its largest entries, elect a sign per entry, and average the entries with that sign.

    Args:
        changes: weight changes of equal shape.
        weights: weight of each, in the election and in the mean.
        density: fraction of the entries of each that is kept, by magnitude; entries tied with the smallest kept one stay.
        is_cut: keep exactly this fraction instead; `topk` decides among tied entries.

    Returns:
        The merged change, zero where nothing is left. A tied election elects plus.
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
    return change * (sizes >= smallest_of_largest(sizes, _kept(change, density)))


def _first(change: Tensor, density: float) -> Tensor:
    """As `_largest`, keeping exactly the fraction `density`."""
    chosen = change.abs().flatten().topk(_kept(change, density)).indices
    return torch.zeros_like(change).flatten().index_copy(0, chosen, change.flatten()[chosen]).reshape(change.shape)


def _kept(change: Tensor, density: float) -> int:
    return max(1, int(density * change.numel()))
