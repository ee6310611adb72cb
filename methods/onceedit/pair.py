"""The edit-independent state of a model pair: its anchors and the target model's relative state."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.api import ArtifactSpec, Context
from methods.onceedit.anchors import Anchors, Rule, pair_anchors
from methods.onceedit.relative import RelativeState
from methods.onceedit.relative import Rule as RowRule
from methods.onceedit.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_STATE, _ANCHORS = "state.safetensors", "anchors.json"


@dataclass(frozen=True, eq=False)
class PairState:
    """The anchors of a pair, and the target model's relative state over them."""

    anchors: Anchors
    llm: RelativeState

    @classmethod
    def of(
        cls,
        target: "PreTrainedModel",
        tokenizers: "tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]",
        anchors: Rule,
        relative: RowRule,
        *,
        pair_special: bool,
    ) -> Self:
        """Match the vocabularies and compute the target model's state; `tokenizers` are the target's and the plug-in's."""
        llm, plugin = (Vocabulary.of(tokenizer) for tokenizer in tokenizers)
        paired = pair_anchors(llm, plugin, anchors, pair_special=pair_special)
        with torch.no_grad():
            return cls(paired, RelativeState.build(input_embeddings(target), paired.llm_ids, relative))

    def save(self, folder: Path) -> None:
        """Write everything except the embeddings."""
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.llm.tensors().items()}
        save_file(tensors, folder / _STATE, metadata={"rule": self.llm.rule})
        ids = {"llm_ids": self.anchors.llm_ids, "plugin_ids": self.anchors.plugin_ids}
        (folder / _ANCHORS).write_text(json.dumps(ids), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, target: "PreTrainedModel", relative: RowRule) -> Self:
        """Read a saved state onto the target model's device and combine it with the model's embeddings."""
        embeddings_VD = input_embeddings(target)
        ids = json.loads((folder / _ANCHORS).read_text(encoding="utf-8"))
        anchors = Anchors(tuple(ids["llm_ids"]), tuple(ids["plugin_ids"]))
        tensors: dict[str, Tensor] = load_file(folder / _STATE, device=str(embeddings_VD.device))
        return cls(anchors, RelativeState(relative, embeddings_VD, **tensors))


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Build the state of the pair in `spec`; the time counts towards the `attach` phase."""
    plugin, target = (context.load_model(spec.inputs[role]) for role in ("plugin", "model"))
    rules = spec.identity
    with context.clock.phase("attach"):
        pair = PairState.of(
            target.model,
            (target.tokenizer, plugin.tokenizer),
            rules["anchors"],
            rules["relative"],
            pair_special=rules["eos"] == "pair_special",
        )
    pair.save(folder)


def input_embeddings(model: "PreTrainedModel") -> Tensor:
    """The input embedding table, V × D, without a copy."""
    rows: Tensor = model.get_input_embeddings().weight.detach()
    return rows
