"""Partial models: run frozen blocks once, re-run only the blocks above them, and apply the head at selected positions.

A part is a shallow copy of the base model with a shorter list of blocks, so that masks, rotary positions and attention
windows are computed by the same code as for the whole model; weights, hooks and modules are shared with it.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from harness.models.batching import Padded, right_padded
from harness.models.loaded import LoadedModel
from harness.models.precision import at_least_fp32

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Part(nn.Module):
    """A run of consecutive blocks of a base model; created by `part`.

    Attributes:
        base: the shallow copy of the base model, for callers that pass their own cache.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor | Mapping[str, Tensor], position_ids: Tensor
    ) -> Tensor:
        """Map the residual stream before the part to the stream after it, without a key-value cache.

        Args:
            inputs_embeds: residual stream before the first block of the part, B × T × D.
            attention_mask: as for the base model: B × T, 1 for a token, 0 for padding; or a custom mask.
            position_ids: B × T.

        Returns:
            B × T × D, after the last block of the part and, if the part includes it, after the final norm.
        """
        output = self.base(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        return cast(Tensor, output[0])


def part(model: LoadedModel, start: int, stop: int | None = None) -> Part:
    """Blocks `start` to `stop` - 1 as a separate module that shares everything with the model.

    The model is not changed. A part sees later changes of weights and hooks inside its blocks, but not the replacement of a
    whole block; in that case create a new part, which is cheap.

    Args:
        model: the whole model.
        start: first block, from 0; even then the stream before it must be given (see `LoadedModel.first_stream`).
        stop: end of the range (exclusive); None for all remaining blocks and the final norm.

    Raises:
        ValueError: for blocks that the model does not have.
    """
    last = model.n_layers if stop is None else stop
    if not 0 <= start <= last <= model.n_layers:
        raise ValueError(f"{model.ref.name} has {model.n_layers} blocks, not blocks {start} to {last}")
    whole, layout = model.backbone, model.layout
    blocks, norm = _leaf(layout.block.removesuffix(".{}")), _leaf(layout.final_norm)
    twin = copy.copy(whole)
    modules = dict(whole._modules)
    if layout.positions is not None:
        modules[_leaf(layout.positions)] = _NoPositions()
    if layout.project_in is not None:
        modules[_leaf(layout.project_in)] = None
    modules[blocks] = nn.ModuleList(list(cast(nn.ModuleList, whole.get_submodule(blocks)))[start:last])
    if stop is not None:
        modules[norm] = nn.Identity()
        if layout.project_out is not None:
            modules[_leaf(layout.project_out)] = None
    vars(twin).update(_modules=modules, config=_cut(model.config, start, last))
    return Part(twin)


@dataclass(frozen=True, slots=True)
class Streams:
    """Intermediate state of a batch between two blocks.

    Attributes:
        residual_BTD: the residual stream before a block, without gradient.
        mask_BT: 1 for a token, 0 for padding.
        positions_BT: index of each token in its row, from 0; 0 at padded positions.
    """

    residual_BTD: Tensor
    mask_BT: Tensor
    positions_BT: Tensor


def streams(model: LoadedModel, rows: Sequence[Sequence[int]], layer: int) -> Streams:
    """Run the blocks below `layer` once; edits at or above `layer` can reuse the result any number of times.

    Args:
        model: the whole model; its blocks below `layer` must not change while the result is in use.
        rows: ids of each sequence; padded on the right, so that an index into a row is also its column in the batch.
        layer: the block that takes the result as input; 0 gives the embeddings.
    """
    return streams_of(model, right_padded(rows, model.device), layer)


@torch.no_grad()
def streams_of(model: LoadedModel, batch: Padded, layer: int) -> Streams:
    """Run the blocks below `layer` as in `streams`, for rows that are already padded."""
    first_BTD = model.first_stream(batch.ids_BT, batch.positions_BT)
    residual_BTD = part(model, 0, layer)(first_BTD, batch.mask_BT, batch.positions_BT)
    return Streams(residual_BTD, batch.mask_BT, batch.positions_BT)


def logits_at(model: LoadedModel, streams: Streams, layer: int, places: Sequence[tuple[int, int]]) -> Tensor:
    """Next-token logits at N positions: blocks from `layer` on run for all tokens, final norm and head only at the positions.

    Args:
        model: the whole model.
        streams: a batch at the input of `layer`.
        layer: the first block to run.
        places: row and column of each position.

    Returns:
        N × V, at least fp32, differentiable.
    """
    hidden_BTD = streams.residual_BTD
    if layer < model.n_layers:
        hidden_BTD = part(model, layer, model.n_layers)(hidden_BTD, streams.mask_BT, streams.positions_BT)
    return at_least_fp32(model.logits(model.final_norm(at_places(hidden_BTD, places))))


def at_places(values_BTD: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    """Gather values at N positions, given as row and column: N × D. Uses a single non-blocking transfer to the device."""
    rows_N, columns_N = torch.tensor(places, dtype=torch.long).reshape(-1, 2).T.to(values_BTD.device, non_blocking=True)
    return values_BTD[rows_N, columns_N]


def passed_on(output: Any) -> Tensor:
    """The hidden states in a module's output; attention modules, and some blocks, also return other things."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


class _NoPositions(nn.Module):
    """Stands in for learned position embeddings, which the stream before the first block already contains."""

    def forward(self, any_BT: Tensor, *_: object, **__: object) -> Tensor:
        return torch.zeros((), device=any_BT.device)


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _cut(config: "PretrainedConfig", start: int, stop: int) -> "PretrainedConfig":
    """Configuration for a subset of blocks: base models read the number of blocks and the type of each from it."""
    cut = copy.copy(config)
    if getattr(config, "layer_types", None) is not None:
        cut.layer_types = config.layer_types[start:stop]
    cut.num_hidden_layers = stop - start
    return cut
