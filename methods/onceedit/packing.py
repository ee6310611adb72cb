"""Sequence packing: several short sequences per row, so that training computes hardly any padding.

Right-padded batches of prompts of realistic length are 20 to 46 % padding. A block-diagonal mask separates the sequences
and positions start at 0 in each, so hidden states are the same as for each sequence on its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.models.submodels import at_places
from methods.onceedit.forward import attention_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROW_TOKENS = 64
"""Minimum row length, given enough tokens: longer rows cost more attention, shorter ones more padding."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Sequences packed into rows.

    Attributes:
        ids_BT: the ids.
        positions_BT: position of each id in its own sequence.
        is_visible_BTT: which keys (third axis) a query (second) may see, ignoring any window; padding sees itself.
        starts: row and column of the first id of each sequence.
    """

    ids_BT: Tensor
    positions_BT: Tensor
    is_visible_BTT: Tensor
    starts: tuple[tuple[int, int], ...]


def packed(sequences: Sequence[Sequence[int]], device: torch.device) -> Packed:
    """Pack greedily: longest sequence first, each into the currently shortest row. Uses one transfer to the device."""
    lengths = [len(sequence) for sequence in sequences]
    filled = [0] * max(1, sum(lengths) // max(ROW_TOKENS, *lengths))
    starts = [(0, 0)] * len(sequences)
    for index in sorted(range(len(sequences)), key=lambda index: -lengths[index]):
        row = filled.index(min(filled))
        starts[index] = (row, filled[row])
        filled[row] += lengths[index]
    table_3BT = torch.zeros(3, len(filled), max(filled), dtype=torch.long)
    table_3BT[2] = -1 - torch.arange(max(filled))  # each padding position is a sequence of its own
    for index, (row, start) in enumerate(starts):
        place = slice(start, start + lengths[index])
        table_3BT[0, row, place] = torch.tensor(sequences[index])
        table_3BT[1, row, place] = torch.arange(lengths[index])
        table_3BT[2, row, place] = index
    ids_BT, positions_BT, sequence_BT = table_3BT.to(device, non_blocking=True)
    is_own_BTT = (sequence_BT[:, :, None] == sequence_BT[:, None, :]).tril()
    return Packed(ids_BT, positions_BT, is_own_BTT, tuple(starts))


def packed_hidden_at(
    model: "PreTrainedModel", sequences: Sequence[Sequence[int]], at: Sequence[tuple[int, int]]
) -> Tensor:
    """Final hidden states at N positions, N × D; like `forward.hidden_at`, but packed instead of padded.

    Args:
        model: a causal language model in fp32, or under autocast, with `sdpa` or `eager` attention.
        sequences: ids of each sequence.
        at: the positions, each a sequence and an index into it.
    """
    batch = packed(sequences, model.device)
    mask = attention_mask(model, batch.is_visible_BTT, batch.positions_BT, batch.positions_BT)
    hidden_BTD: Tensor = model.base_model(
        input_ids=batch.ids_BT, position_ids=batch.positions_BT, attention_mask=mask, use_cache=False
    )[0]
    places = [(batch.starts[sequence][0], batch.starts[sequence][1] + index) for sequence, index in at]
    return at_places(hidden_BTD, places)
