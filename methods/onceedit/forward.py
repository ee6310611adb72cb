"""Forward passes over ragged batches: logits only where they are needed, and custom attention masks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from harness.models.batching import right_padded
from harness.models.loaded import logits_of
from harness.models.precision import at_least_fp32
from harness.models.submodels import at_places
from methods.common.masks import LayerMasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def hidden_at(model: "PreTrainedModel", rows: Sequence[Sequence[int]], at: Sequence[tuple[int, int]]) -> Tensor:
    """Final hidden states at N positions, N × D.

    Args:
        model: a causal language model.
        rows: ids of each sequence.
        at: the positions, each a row and an index into it.
    """
    batch = right_padded(rows, model.device)
    hidden_BTD: Tensor = model.base_model(
        input_ids=batch.ids_BT, attention_mask=batch.mask_BT, position_ids=batch.positions_BT, use_cache=False
    )[0]
    return at_places(hidden_BTD, at)


def logits_at(model: "PreTrainedModel", rows: Sequence[Sequence[int]], at: Sequence[tuple[int, int]]) -> Tensor:
    """Next-token logits at N positions, N × V, at least fp32; arguments as in `hidden_at`."""
    return at_least_fp32(logits_of(model, hidden_at(model, rows, at)))


def attention_mask(
    model: "PreTrainedModel", is_visible_BQK: Tensor, positions_BQ: Tensor, positions_BK: Tensor
) -> Tensor | dict[str, Tensor]:
    """Additive attention mask, B × 1 × Q × K, in a form that every architecture uses unchanged; one for each kind of layer.

    A model builds its own masks from the order of the keys in its cache. If that is not the order of the text, a sliding
    window would be cut off in the wrong place; here the window is measured in positions.

    Args:
        model: the model to run; its configuration defines the window.
        is_visible_BQK: which keys a query may see, ignoring any window.
        positions_BQ: position of each query in its text.
        positions_BK: position of each key.
    """
    distance_BQK = positions_BQ[:, :, None] - positions_BK[:, None, :]
    return LayerMasks.of(model.config, is_visible_BQK, distance_BQK, model.dtype).argument
