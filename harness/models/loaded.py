"""A model in memory, with access to the modules that methods edit."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from harness.models.catalogue import ModelRef
from harness.models.layouts import Layout
from harness.models.spec import ModelSpec
from harness.tokens import Framing, end_ids

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class LoadedModel:
    """A causal language model, frozen, in evaluation mode, on its device.

    Batches are built from ids (see `harness.models.batching`), never padded by the tokenizer.

    Attributes:
        tokenizer: appends nothing to a text; what it puts before a text is kept (see `harness.tokens`).
        removed_suffix: tokens that the tokenizer in the model's files appends to every text.
    """

    ref: ModelRef
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    removed_suffix: tuple[str, ...] = ()

    @property
    def framing(self) -> dict[str, list[str]]:
        """The tokens around every text: the kept prefix and the removed suffix."""
        prefix = Framing.of(self.tokenizer).prefix
        return {"prefix": self.tokenizer.convert_ids_to_tokens(list(prefix)), "removed_suffix": [*self.removed_suffix]}

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Ids that end an answer: the tokenizer's special ones, and those that the model's generation settings name."""
        named = self.model.generation_config.eos_token_id if self.model.generation_config else None
        return end_ids(self.tokenizer).union([named] if isinstance(named, int) else named or ())

    @property
    def device(self) -> "torch.device":
        """Device that texts enter and answers leave; a model that is spread over several has weights elsewhere too."""
        device: torch.device = self.model.device
        return device

    @property
    def spec(self) -> ModelSpec:
        """Its shape, layout and precision."""
        return self.ref.spec

    @cached_property
    def layout(self) -> Layout:
        """Module paths of its architecture; looking up an unknown one takes milliseconds."""
        return self.spec.layout

    @property
    def backbone(self) -> "torch.nn.Module":
        """The module that embeds ids, runs the blocks and applies the final norm."""
        return self.module(self.layout.backbone)

    @property
    def config(self) -> "PretrainedConfig":
        """The configuration of the language model, which may be a part of the whole model's."""
        config: PretrainedConfig = self.model.config.get_text_config(decoder=True)
        return config

    @property
    def positions(self) -> int:
        """Length of the longest text that it can read as a whole, in ids."""
        return int(self.config.max_position_embeddings)

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return int(self.config.num_hidden_layers)

    @property
    def context(self) -> int:
        """Length of the longest text that can be run in parts, as editing and statistics do, in ids.

        Less than the longest that the model reads if its rotary frequencies depend on the length of a text.
        """
        from harness.models.rope import fixed_context

        return min(self.positions, fixed_context(self.model) or self.positions)

    def module(self, path: str, layer: int | None = None) -> "torch.nn.Module":
        """Look up a submodule by its path, with `{}` replaced by `layer`; negative layers count from the end.

        Raises:
            ValueError: for a layer that does not exist, or if only one of `{}` and `layer` is given.
            AttributeError: for a path that does not exist.
        """
        part: torch.nn.Module = self.model.get_submodule(self.path(path, layer))
        return part

    def path(self, path: str, layer: int | None = None) -> str:
        """The full path of a submodule, as resolved by `module`; the prefix of its parameter names."""
        if ("{}" in path) != (layer is not None):
            raise ValueError(f"path '{path}' and layer {layer} do not go together")
        if layer is None:
            return path
        if not -self.n_layers <= layer < self.n_layers:
            raise ValueError(f"{self.ref.name} has {self.n_layers} layers, not a layer {layer}")
        return path.format(layer % self.n_layers)

    def block(self, layer: int) -> "torch.nn.Module":
        """The transformer block of a layer; its output is the residual stream after the block."""
        return self.module(self.layout.block, layer)

    def value_matrix(self, layer: int) -> "tuple[str, torch.Tensor]":
        """Name and weight, d_model × d_ff, of the second feed-forward matrix of a layer.

        The weight is the parameter itself, or a view of it where it is stored the other way round (see `linear.weight_of`):
        changes in place reach the model. GPT-J also has a bias there, which this does not include.
        """
        from harness.models.linear import weight_of

        path = self.path(self.layout.value_matrix, layer)
        return f"{path}.weight", weight_of(self.module(path))

    @property
    def final_norm(self) -> "torch.nn.Module":
        """The modules between the last block and the head: the final norm, and OPT's projection to the embeddings' width."""
        norm = self.module(self.layout.final_norm)
        if self.layout.project_out is None:
            return norm
        from torch import nn

        return nn.Sequential(norm, self.module(self.layout.project_out))

    @property
    def head(self) -> "torch.nn.Module":
        """The projection from hidden states to vocabulary logits; `logits` also applies what may follow it."""
        return self.module(self.layout.head)

    @property
    def embeddings(self) -> "torch.nn.Module":
        """The token embeddings; `first_stream` also adds learned position embeddings."""
        return self.module(self.layout.embeddings)

    def logits(self, hidden: "torch.Tensor") -> "torch.Tensor":
        """Vocabulary logits of final hidden states, … × D to … × V."""
        return logits_of(self.model, hidden)

    def first_stream(self, ids_BT: "torch.Tensor", positions_BT: "torch.Tensor") -> "torch.Tensor":
        """The residual stream before the first block, B × T × D: embeddings of the ids and, if learned, positions."""
        stream_BTD: torch.Tensor = self.embeddings(ids_BT)
        if self.layout.project_in is not None:
            stream_BTD = self.module(self.layout.project_in)(stream_BTD)
        if self.layout.positions is not None:
            from torch.nn.functional import embedding

            table = self.module(self.layout.positions).get_parameter("weight")
            stream_BTD = stream_BTD + embedding(positions_BT + self.layout.position_offset, table)
        return stream_BTD

    def into_stream(self, layer: int, values: "torch.Tensor") -> "torch.Tensor":
        """Contribution of a value matrix's outputs, … × D, to the residual stream: themselves, or their norm (Gemma)."""
        if self.layout.value_norm is None:
            return values
        norm = self.module(self.layout.value_norm, layer)
        normed: torch.Tensor = norm(values.to(next(norm.parameters()).device))
        return normed.to(values.device)


def logits_of(model: "PreTrainedModel", hidden: "torch.Tensor") -> "torch.Tensor":
    """Vocabulary logits of final hidden states, … × D to … × V, as the causal model computes them."""
    return capped(model, model.get_output_embeddings()(hidden))


def capped(model: "PreTrainedModel", logits: "torch.Tensor") -> "torch.Tensor":
    """Apply what the causal model applies after its head (such as a soft cap); the identity for most models.

    A factor (`logit_scale`, Cohere), or a smooth cap (`final_logit_softcapping`, Gemma 2).
    """
    config = model.config.get_text_config(decoder=True)
    scale: float | None = getattr(config, "logit_scale", None)
    cap: float | None = getattr(config, "final_logit_softcapping", None)
    if scale is not None:
        logits = logits * scale
    return logits if cap is None else (logits / cap).tanh() * cap
