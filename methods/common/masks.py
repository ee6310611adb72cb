"""Attention masks of one's own: how far back a model looks, and who sees whom in the form that all architectures take."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def sliding_window(config: "PretrainedConfig") -> int | None:
    """How many ids, itself included, an id sees at most; None is all.

    Raises:
        ValueError: if layers differ in that; one mask serves all of them.
    """
    window: int | None = getattr(config, "sliding_window", None)
    if window is not None and set(getattr(config, "layer_types", None) or ()) - {"sliding_attention"}:
        raise ValueError(
            f"{config.model_type}: some layers have a sliding window and others none, so there is no common mask"
        )
    return window


def additive(is_visible_BQK: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores, 0 where a query sees a key, B × 1 × Q × K."""
    mask_BQK = torch.zeros(is_visible_BQK.shape, dtype=dtype, device=is_visible_BQK.device)
    # not -inf: a place of padding may see nothing, and its softmax must stay a number
    return mask_BQK.masked_fill_(~is_visible_BQK, torch.finfo(dtype).min)[:, None]
