"""A model in memory with what every method needs to find its way in it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.models import catalogue
from harness.models.architecture import CatalogueEntry, Layout
from harness.models.catalogue import ModelRef

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class LoadedModel:
    """A causal language model, frozen, in evaluation mode, on its device.

    The tokenizer pads nothing by itself: batches are built from ids (see `harness.models.batching`).
    """

    ref: ModelRef
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def device(self) -> "torch.device":
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def entry(self) -> CatalogueEntry:
        """What the catalogue knows of it."""
        return catalogue.entry(self.ref.name)

    @property
    def layout(self) -> Layout:
        """Module paths of its architecture."""
        return self.entry.layout

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return int(self.model.config.num_hidden_layers)

    def module(self, path: str, layer: int | None = None) -> "torch.nn.Module":
        """A part of the model by its path, `{}` filled with `layer`; negative layers count from the last.

        Raises:
            ValueError: for a layer that the model does not have, or a layer where the path has no place for one.
            AttributeError: for a path that the model does not have.
        """
        part: torch.nn.Module = self.model.get_submodule(self.path(path, layer))
        return part

    def path(self, path: str, layer: int | None = None) -> str:
        """The full path of a part, as `module` resolves it; prefix of its parameters' names."""
        if ("{}" in path) != (layer is not None):
            raise ValueError(f"path '{path}' and layer {layer} do not go together")
        if layer is None:
            return path
        if not -self.n_layers <= layer < self.n_layers:
            raise ValueError(f"{self.ref.name} has {self.n_layers} layers, not a layer {layer}")
        return path.format(layer % self.n_layers)

    def block(self, layer: int) -> "torch.nn.Module":
        """The transformer block of a layer; its output is the residual stream."""
        return self.module(self.layout.block, layer)

    def value_matrix(self, layer: int) -> "tuple[str, torch.nn.Parameter]":
        """Name and weight, d_model × d_ff, of the second feed-forward matrix of a layer (`nn.Linear`: dv × dk).

        GPT-J's has a bias beside it, which no method edits.
        """
        name = f"{self.path(self.layout.value_matrix, layer)}.weight"
        weight: torch.nn.Parameter = self.model.get_parameter(name)
        return name, weight

    @property
    def final_norm(self) -> "torch.nn.Module":
        """The norm between the last block and the head."""
        return self.module(self.layout.final_norm)

    @property
    def head(self) -> "torch.nn.Module":
        """Hidden states to logits over the vocabulary."""
        return self.module(self.layout.head)

    @property
    def embeddings(self) -> "torch.nn.Module":
        """Ids to the residual stream before the first block."""
        return self.module(self.layout.embeddings)
