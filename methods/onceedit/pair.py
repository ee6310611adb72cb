"""What a pair of models shares whatever is edited: its anchors, and the relative state of the target model."""

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
        """Match the vocabularies of target model and plug-in, in this order, and make the target model's state."""
        llm, plugin = (Vocabulary.of(tokenizer) for tokenizer in tokenizers)
        paired = pair_anchors(llm, plugin, anchors, pair_special=pair_special)
        with torch.no_grad():
            return cls(paired, RelativeState.build(input_embeddings(target), paired.llm_ids, relative))

    def save(self, folder: Path) -> None:
        """Write everything but the embeddings."""
        tensors = {name: tensor.contiguous().cpu() for name, tensor in self.llm.tensors().items()}
        save_file(tensors, folder / _STATE, metadata={"rule": self.llm.rule})
        ids = {"llm_ids": self.anchors.llm_ids, "plugin_ids": self.anchors.plugin_ids}
        (folder / _ANCHORS).write_text(json.dumps(ids))

    @classmethod
    def load(cls, folder: Path, target: "PreTrainedModel", relative: RowRule) -> Self:
        """Read what `save` wrote, onto the device of the target model whose embeddings it belongs to."""
        embeddings_VD = input_embeddings(target)
        ids = json.loads((folder / _ANCHORS).read_text())
        anchors = Anchors(tuple(ids["llm_ids"]), tuple(ids["plugin_ids"]))
        tensors: dict[str, Tensor] = load_file(folder / _STATE, device=str(embeddings_VD.device))
        return cls(anchors, RelativeState(relative, embeddings_VD, **tensors))


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Make the state of the pair that `spec` names. Counts as attaching."""
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
    """The input embedding table itself, V × D."""
    rows: Tensor = model.get_input_embeddings().weight.detach()
    return rows
