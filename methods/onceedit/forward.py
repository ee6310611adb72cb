"""Forward passes over ragged batches of ids that apply the output head only where its logits are read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.models.batching import right_padded

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def hidden_at(model: "PreTrainedModel", rows: Sequence[Sequence[int]], at: Sequence[tuple[int, int]]) -> Tensor:
    """Final hidden states of N places, N × D.

    Args:
        model: a causal language model whose logits are its output head on the last hidden state of its base model.
        rows: ids of each sequence.
        at: the places, each a row and an index into it.
    """
    batch = right_padded(rows, model.device)
    hidden_BTD: Tensor = model.base_model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False)[0]
    places_N2 = torch.tensor(at, dtype=torch.long, device=hidden_BTD.device).reshape(-1, 2)
    return hidden_BTD[places_N2[:, 0], places_N2[:, 1]]


def logits_at(model: "PreTrainedModel", rows: Sequence[Sequence[int]], at: Sequence[tuple[int, int]]) -> Tensor:
    """Next-token logits of N places, N × V, at least fp32; arguments as in `hidden_at`."""
    head = model.get_output_embeddings()
    return at_least_fp32(head(hidden_at(model, rows, at)))


def at_least_fp32(values: Tensor) -> Tensor:
    """Half precision as fp32; fp32 and fp64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
