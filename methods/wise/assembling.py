"""From finished shards to the memories that prompts are routed to: which are merged, and what stands beside them."""

from collections.abc import Sequence

from methods.wise.hparams import WiseHparams
from methods.wise.memory import Side
from methods.wise.merging import ties

_EARLIER = 0.6
"""What an already merged memory counts for when others join it, as in WISE's public code; the others share the rest."""


def assembled(shards: Sequence[Side], edits: int, hparams: WiseHparams) -> list[Side]:
    """The memories after all edits.

    Args:
        shards: in their order; a shard of fewer than `save_freq` edits is not finished and never merged.
        edits: how many there were.
        hparams: when is merged what.

    Returns:
        `retrieve`: a memory for each `merge_freq` edits, then those finished since, then the unfinished one.
        `merge`: one memory for all finished shards, merged again at each `merge_freq` edits and at the end, then the
        unfinished one.
    """
    finished = edits // hparams.save_freq
    size = hparams.merge_freq // hparams.save_freq
    groups = [shards[start : min(start + size, finished)] for start in range(0, finished, size)]
    unfinished = list(shards[finished:])
    if hparams.memory == "retrieve":
        kept = [[merged(group, hparams)] if len(group) == size else list(group) for group in groups]
        return [side for sides in kept for side in sides] + unfinished
    main: list[Side] = []
    for group in groups:
        main = [merged(group, hparams, *main)]
    return main + unfinished


def merged(group: Sequence[Side], hparams: WiseHparams, earlier: Side | None = None) -> Side:
    """One memory out of several, active where any of them was."""
    sides = [*group] if earlier is None else [earlier, *group]
    share = 1.0 if earlier is None else 1 - _EARLIER
    weights = [_EARLIER] * (earlier is not None) + [share / len(group)] * len(group)
    # W' that is kept in fp32 differs from W by equal steps in many places (merge/utils.py:15)
    is_cut = hparams.implementation == "faithful-easyedit"
    change_DK = ties([side.change_DK for side in sides], weights, hparams.density, is_cut)
    return Side(change_DK, min(side.threshold for side in sides))
