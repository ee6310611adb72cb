"""OPT's blocks without the reshape that merges the rows of a batch.

transformers' OPT merges batch and sequence before the feed-forward module. Methods that observe or replace what goes
through a feed-forward matrix need to know the row of each token, as all other models show it.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def unflatten(model: "PreTrainedModel") -> None:
    """Let the feed-forward matrices of OPT see B × T × D; the result is the same bit for bit. No effect on other models."""
    from transformers.models.opt.modeling_opt import OPTDecoderLayer

    for module in model.modules():
        if isinstance(module, OPTDecoderLayer):
            module.forward = _Forward(module)


class _Forward:
    """`OPTDecoderLayer.forward` of a layer that normalises before its modules, in evaluation mode."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer: Any = layer

    def __call__(self, hidden_states: Tensor, **named: Any) -> Tensor:
        layer = self._layer
        attended_BTD, _ = layer.self_attn(hidden_states=layer.self_attn_layer_norm(hidden_states), **named)
        stream_BTD: Tensor = hidden_states + attended_BTD
        added_BTD: Tensor = layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(stream_BTD))))
        return stream_BTD + added_BTD
