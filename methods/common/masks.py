"""Custom attention masks: the sliding window of a model, and additive masks that all architectures accept."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def sliding_window(config: "PretrainedConfig") -> int | None:
    """Size of the attention window in ids, including the query's own; None if it is unlimited.

    Raises:
        ValueError: if layers differ, because one mask must serve all of them.
    """
    window: int | None = getattr(config, "sliding_window", None)
    if window is not None and set(getattr(config, "layer_types", None) or ()) - {"sliding_attention"}:
        raise ValueError(
            f"{config.model_type}: some layers have a sliding window and others do not, so there is no common mask"
        )
    return window


def additive(is_visible_BQK: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask, B × 1 × Q × K: 0 where a query sees a key."""
    mask_BQK = torch.zeros(is_visible_BQK.shape, dtype=dtype, device=is_visible_BQK.device)
    # not -inf: a padding query may see no key at all, and its softmax must not become NaN
    return mask_BQK.masked_fill_(~is_visible_BQK, torch.finfo(dtype).min)[:, None]
