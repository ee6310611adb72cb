"""A model in parts: blocks that do not change run once, what is trained starts behind them, the head reads few places.

A part is the base model itself on a shallow copy with a shorter list of blocks, so that masks, rotary positions and
windows are made by the very code that makes them for the whole model; weights, hooks and modules are shared with it.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from harness.models.batching import Padded, right_padded
from harness.models.loaded import LoadedModel
from harness.models.precision import at_least_fp32

if TYPE_CHECKING:
    from transformers import PretrainedConfig


class Part(nn.Module):
    """Some consecutive blocks of a base model; made by `part`.

    Attributes:
        base: the shallow copy of the base model, for callers that hand it a cache of their own.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Residual stream in, residual stream out; no keys and values are kept.

        Args:
            inputs_embeds: the stream that enters the first block of the part, B × T × D.
            attention_mask: as the base model takes it: B × T, 1 for a token, 0 for padding.
            position_ids: B × T.

        Returns:
            B × T × D, behind the last block of the part, and behind the final norm if the part holds it.
        """
        output = self.base(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        )
        return cast(Tensor, output[0])


def part(model: LoadedModel, start: int, stop: int | None = None) -> Part:
    """Blocks `start` to `stop` - 1 as a module of their own that shares everything with the model.

    The model is not changed. A part sees new weights and hooks inside the blocks, but not a block that takes the place
    of another: it is made anew then, which costs nothing.

    Args:
        model: the whole.
        start: first block, from 0.
        stop: the block behind the last one; None for all blocks and the final norm.

    Raises:
        ValueError: for blocks that the model does not have.
    """
    last = model.n_layers if stop is None else stop
    if not 0 <= start <= last <= model.n_layers:
        raise ValueError(f"{model.ref.name} has {model.n_layers} blocks, not blocks {start} to {last}")
    whole = cast(nn.Module, model.model.base_model)
    blocks, norm = _leaf(model.layout.block.removesuffix(".{}")), _leaf(model.layout.final_norm)
    twin = copy.copy(whole)
    modules = dict(whole._modules)
    modules[blocks] = nn.ModuleList(list(cast(nn.ModuleList, whole.get_submodule(blocks)))[start:last])
    if stop is not None:
        modules[norm] = nn.Identity()
    vars(twin).update(_modules=modules, config=_cut(model.model.config, start, last))
    return Part(twin)


@dataclass(frozen=True, slots=True)
class Streams:
    """A batch in the middle of a model.

    Attributes:
        residual_BTD: the residual stream that enters a block, without gradient.
        mask_BT: 1 for a token, 0 for padding.
        positions_BT: place of each token in its row, from 0; 0 in padded places.
    """

    residual_BTD: Tensor
    mask_BT: Tensor
    positions_BT: Tensor


def streams(model: LoadedModel, rows: Sequence[Sequence[int]], layer: int) -> Streams:
    """Run the blocks below `layer` once: whoever edits `layer` or above starts from here as often as it likes.

    Args:
        model: the whole; its blocks below `layer` must stay as they are for as long as the result is used.
        rows: ids of each sequence; padded on the right, so that an index into a row is one into the batch.
        layer: the block that the result enters; 0 gives the embeddings.
    """
    return streams_of(model, right_padded(rows, model.device), layer)


@torch.no_grad()
def streams_of(model: LoadedModel, batch: Padded, layer: int) -> Streams:
    """As `streams`, for rows that are padded already."""
    residual_BTD = part(model, 0, layer)(model.embeddings(batch.ids_BT), batch.mask_BT, batch.positions_BT)
    return Streams(residual_BTD, batch.mask_BT, batch.positions_BT)


def logits_at(model: LoadedModel, streams: Streams, layer: int, places: Sequence[tuple[int, int]]) -> Tensor:
    """Next-token logits at N places: blocks from `layer` on for all tokens, final norm and head for the places only.

    Args:
        model: the whole.
        streams: a batch that enters `layer`.
        layer: the first block that runs.
        places: row and column of each place.

    Returns:
        N × V, at least fp32, with gradients of whatever asks for one.
    """
    hidden_BTD = streams.residual_BTD
    if layer < model.n_layers:
        hidden_BTD = part(model, layer, model.n_layers)(hidden_BTD, streams.mask_BT, streams.positions_BT)
    logits_NV = cast(Tensor, model.head(model.final_norm(at_places(hidden_BTD, places))))
    return at_least_fp32(logits_NV)


def at_places(values_BTD: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    """What stands at N places, each a row and a column, N × D. One transfer to the device, which waits for nothing."""
    rows_N, columns_N = torch.tensor(places, dtype=torch.long).reshape(-1, 2).T.to(values_BTD.device, non_blocking=True)
    return values_BTD[rows_N, columns_N]


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _cut(config: "PretrainedConfig", start: int, stop: int) -> "PretrainedConfig":
    """The configuration of fewer blocks: base models look up how many there are, and of what kind each is."""
    cut = copy.copy(config)
    if getattr(config, "layer_types", None) is not None:
        cut.layer_types = config.layer_types[start:stop]
    cut.num_hidden_layers = stop - start
    return cut
