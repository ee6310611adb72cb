"""Short sequences back to back in a few rows: a training step then computes hardly any padding.

Right-padded batches of prompts of real length are 20 to 46 % padding. The mask keeps each sequence to itself and its
positions start at 0, so its hidden states are those that it has alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.models.submodels import at_places
from methods.common.masks import sliding_window

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROW_TOKENS = 64
"""Least length of a row, if there is as much: attention costs more in longer rows, padding more in shorter ones."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Sequences in rows.

    Attributes:
        ids_BT: the ids.
        positions_BT: place of each id in its own sequence.
        mask_B1TT: 0 where a query (third axis) sees a key (fourth), -inf elsewhere; padding sees itself.
        starts: row and column of the first id of each sequence.
    """

    ids_BT: Tensor
    positions_BT: Tensor
    mask_B1TT: Tensor
    starts: tuple[tuple[int, int], ...]


def packed(sequences: Sequence[Sequence[int]], device: torch.device) -> Packed:
    """Deal the sequences, longest first, each into the row that is shortest so far. One transfer to the device."""
    lengths = [len(sequence) for sequence in sequences]
    filled = [0] * max(1, sum(lengths) // max(ROW_TOKENS, *lengths))
    starts = [(0, 0)] * len(sequences)
    for index in sorted(range(len(sequences)), key=lambda index: -lengths[index]):
        row = filled.index(min(filled))
        starts[index] = (row, filled[row])
        filled[row] += lengths[index]
    table_3BT = torch.zeros(3, len(filled), max(filled), dtype=torch.long)
    table_3BT[2] = -1 - torch.arange(max(filled))  # each padded place is a sequence of its own
    for index, (row, start) in enumerate(starts):
        place = slice(start, start + lengths[index])
        table_3BT[0, row, place] = torch.tensor(sequences[index])
        table_3BT[1, row, place] = torch.arange(lengths[index])
        table_3BT[2, row, place] = index
    ids_BT, positions_BT, sequence_BT = table_3BT.to(device, non_blocking=True)
    is_own_BTT = (sequence_BT[:, :, None] == sequence_BT[:, None, :]).tril()
    mask_BTT = torch.zeros(is_own_BTT.shape, device=device).masked_fill_(~is_own_BTT, -torch.inf)
    return Packed(ids_BT, positions_BT, mask_BTT[:, None], tuple(starts))


def packed_hidden_at(
    model: "PreTrainedModel", sequences: Sequence[Sequence[int]], at: Sequence[tuple[int, int]]
) -> Tensor:
    """Final hidden states of N places, N × D, as `forward.hidden_at` gives them of padded rows.

    Args:
        model: a causal language model in fp32, or under autocast, whose attention is `sdpa` or `eager`.
        sequences: ids of each sequence.
        at: the places, each a sequence and an index into it.

    Raises:
        ValueError: for a sequence longer than the model's attention window, which the mask does not know.
    """
    window, longest = sliding_window(model.config), max(map(len, sequences))
    if window is not None and longest > window:
        raise ValueError(f"a sequence of {longest} ids is longer than the attention window of {window}")
    batch = packed(sequences, model.device)
    hidden_BTD: Tensor = model.base_model(
        input_ids=batch.ids_BT, position_ids=batch.positions_BT, attention_mask=batch.mask_B1TT, use_cache=False
    )[0]
    places = [(batch.starts[sequence][0], batch.starts[sequence][1] + index) for sequence, index in at]
    return at_places(hidden_BTD, places)
