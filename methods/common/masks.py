"""Custom attention masks: additive, with the attention window of each kind of layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from methods.common import MASKED

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_ALL = "all layers"


@dataclass(frozen=True, slots=True)
class LayerMasks:
    """Additive attention masks, one for each kind of layer.

    Attributes:
        by_kind: B × 1 × Q × K, 0 where a query sees a key; by layer type, or a single one if all layers are of one kind.
    """

    by_kind: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, config: "PretrainedConfig", is_visible_BQK: Tensor, distance_BQK: Tensor, dtype: torch.dtype
    ) -> "LayerMasks":
        """Build the masks of a model.

        Args:
            config: its configuration, which defines the windows.
            is_visible_BQK: which keys a query may see, ignoring any window.
            distance_BQK: number of ids from each key to each query in the text.
            dtype: precision of the masks.
        """
        return cls(
            {
                kind: additive(is_visible_BQK if window is None else is_visible_BQK & (distance_BQK < window), dtype)
                for kind, window in windows(config).items()
            }
        )

    def __getitem__(self, index: Any) -> "LayerMasks":
        """The same part of every mask, for example some of the rows."""
        return LayerMasks({kind: mask_B1QK[index] for kind, mask_B1QK in self.by_kind.items()})

    @property
    def argument(self) -> "Tensor | dict[str, Tensor]":
        """What a base model takes as `attention_mask`."""
        only = self.by_kind.get(_ALL)
        return dict(self.by_kind) if only is None else only


def windows(config: "PretrainedConfig") -> dict[str, int | None]:
    """Attention window of each kind of layer, in ids including the query's own; None where it is unlimited.

    A single entry if all layers are of one kind. Layers that measure their window themselves (GPT-Neo) count as unlimited.

    Raises:
        ValueError: for a kind of layer with attention other than causal, full or windowed.
    """
    window: int | None = getattr(config, "sliding_window", None)
    kinds = sorted(set(getattr(config, "layer_types", None) or ()))
    if not kinds:
        return {_ALL: window}
    found = {"full_attention": None, "sliding_attention": window}
    if unknown := set(kinds) - MASKED:
        raise ValueError(f"{config.model_type}: no mask for layers of type {', '.join(sorted(unknown))}")
    return {_ALL: found[kinds[0]]} if len(kinds) == 1 else {kind: found[kind] for kind in kinds}


def additive(is_visible_BQK: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask, B × 1 × Q × K: 0 where a query sees a key."""
    mask_BQK = torch.zeros(is_visible_BQK.shape, dtype=dtype, device=is_visible_BQK.device)
    # not -inf: a padding query may see no key at all, and its softmax must not become NaN
    return mask_BQK.masked_fill_(~is_visible_BQK, torch.finfo(dtype).min)[:, None]
