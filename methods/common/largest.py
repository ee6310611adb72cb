"""The largest entries of a tensor."""

import torch
from torch import Tensor

_GROUP = 16  # entries of a row that are compared before any is selected


def smallest_of_largest(values: Tensor, kept: int) -> Tensor:
    """The smallest of the `kept` largest entries, from which on entries are kept; those tied with it are too.

    Not `kthvalue`: before torch 2.10 it has no deterministic CUDA kernel and raises when one is required.
    """
    return values.flatten().topk(kept, sorted=False).values.min()


def largest_of_rows(values_TA: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """The `kept` largest entries of each row, in descending order, and their columns; T × kept each.

    In two stages, at a third of the time of `topk` on long rows on a CPU: the `kept` groups of columns with the largest maxima
    hold them, because no entry of another group is above any of these maxima.
    """
    groups = values_TA.shape[1] // _GROUP
    if groups <= kept:
        top_TK, at_TK = values_TA.topk(kept, dim=-1)
        return top_TK, at_TK
    # a group takes every `groups`-th column, so that the maxima are those of contiguous vectors
    maxima_TG = values_TA[:, : groups * _GROUP].view(-1, _GROUP, groups).amax(dim=1)
    groups_TK = maxima_TG.topk(kept, dim=-1, sorted=False).indices
    columns = torch.arange(groups * _GROUP, device=values_TA.device).view(_GROUP, groups)
    candidates_TC = columns.T[groups_TK].flatten(1)
    rest = torch.arange(groups * _GROUP, values_TA.shape[1], device=values_TA.device)
    candidates_TC = torch.cat([candidates_TC, rest.expand(len(values_TA), -1)], dim=1)
    top_TK, at_TK = values_TA.gather(1, candidates_TC).topk(kept, dim=-1)
    return top_TK, candidates_TC.gather(1, at_TK)
