"""The state of a model pair: its anchors and the relative state of one of the two models, stored as an artifact.

Each side of a pair is an artifact of its own. The target model's side depends on no edit. The plug-in's side depends on the
edit if its embeddings are trained; if they are frozen, it is that of the unedited plug-in, which all edits share.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.api import Advance, ArtifactSpec, Context
from methods.onceedit.anchors import Anchors, Rule, pair_anchors
from methods.onceedit.geometry import Geometry
from methods.onceedit.plugin import EditedPlugin
from methods.onceedit.relative import RelativeState
from methods.onceedit.relative import Rule as RowRule
from methods.onceedit.round_trip import round_trip
from methods.onceedit.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from harness.models.loaded import LoadedModel

_STATE, _PAIR = "state.safetensors", "pair.json"
_GEOMETRY = "geometry."


@dataclass(frozen=True, eq=False)
class PairState:
    """One side of a pair.

    Attributes:
        anchors: the anchors of the pair; `llm_ids` are those of this model, whichever role it has.
        state: the relative state of this model over them.
        round_trip: share of this model's own tokens that survive the round trip (see `round_trip`); None if not measured.
    """

    anchors: Anchors
    state: RelativeState
    round_trip: float | None = None

    @classmethod
    def of(
        cls,
        model: "PreTrainedModel",
        tokenizers: "tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]",
        anchors: Rule,
        relative: RowRule,
        temperature: float = 1.0,
        *,
        pair_special: bool,
        share: float = 1.0,
        advance: Advance = lambda steps=1: None,
    ) -> Self:
        """Match the vocabularies and compute the model's state; `tokenizers` are this model's and the other's.

        `advance` is called with numbers of tokens whose rows have been computed.
        """
        own, other = tokenizers
        # the vocabularies take as much memory as the state, and are gone when it is computed
        paired = pair_anchors(Vocabulary.of(own), Vocabulary.of(other), anchors, pair_special=pair_special, share=share)
        with torch.no_grad():
            state = RelativeState.build(input_embeddings(model), paired.llm_ids, relative, temperature, advance=advance)
        return cls(paired, state)

    def save(self, folder: Path) -> None:
        """Write everything except the embeddings, of which a hash is kept."""
        tensors = self.state.tensors() | {
            _GEOMETRY + name: tensor for name, tensor in self.state.geometry.tensors().items()
        }
        save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, folder / _STATE)
        pair = {
            "llm_ids": self.anchors.llm_ids,
            "plugin_ids": self.anchors.plugin_ids,
            "rule": self.state.rule,
            "temperature": self.state.temperature,
            "error": self.state.error,
            "embeddings": _fingerprint(self.state.embeddings_VD),
            "round_trip": self.round_trip,
        }
        (folder / _PAIR).write_text(json.dumps(pair), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, model: "PreTrainedModel") -> Self:
        """Read a saved state onto the model's device and combine it with the model's embeddings (see `require`)."""
        pair = json.loads((folder / _PAIR).read_text(encoding="utf-8"))
        anchors = Anchors(tuple(pair["llm_ids"]), tuple(pair["plugin_ids"]))
        embeddings_VD = input_embeddings(model)
        device = str(embeddings_VD.device)
        tensors: dict[str, Tensor] = load_file(folder / _STATE, device=device)
        geometry = Geometry(
            **{name.removeprefix(_GEOMETRY): tensors.pop(name) for name in [*tensors] if name.startswith(_GEOMETRY)}
        )
        embeddings_VD = embeddings_VD[: len(tensors["log_z_V"])]
        state = RelativeState(
            pair["rule"], pair["temperature"], embeddings_VD, geometry, **tensors, error=pair["error"]
        )
        return cls(anchors, state, pair["round_trip"])

    @staticmethod
    def require(folder: Path, model: "PreTrainedModel") -> None:
        """Check that a saved state was computed from a model's embeddings; hashes all of them, which is no part of attaching.

        A row that the model has beyond them (`[WEIGHT]`) does not matter.

        Raises:
            ValueError: if it was not.
        """
        pair = json.loads((folder / _PAIR).read_text(encoding="utf-8"))
        with safe_open(folder / _STATE, "pt") as tensors:
            (n_tokens,) = tensors.get_slice("log_z_V").get_shape()
        if _fingerprint(input_embeddings(model)[:n_tokens]) != pair["embeddings"]:
            raise ValueError(f"{folder} has the relative state of other embeddings")


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Build one side of a pair; the time counts towards the `attach` phase.

    It is the side of the model `model` in `spec`, or of the edited plug-in that `spec` needs, over the anchors shared with
    `other`. The round trip is measured for unedited models.
    """
    other, rules = context.load_model(spec.inputs["other"]), spec.identity
    edit = spec.needs.get("edit")
    own: EditedPlugin | LoadedModel
    if edit:
        own = EditedPlugin.load(context.artifact(edit), context.device, rules.get("dtype"))
    else:
        own = context.load_model(spec.inputs["model"])
    tokens = len(input_embeddings(own.model))
    with context.clock.phase("attach"), context.progress("comparing tokens with anchors", tokens) as advance:
        pair = PairState.of(
            own.model,
            (own.tokenizer, other.tokenizer),
            rules["anchors"],
            rules["relative"],
            rules["temperature"],
            pair_special=rules["eos"] == "pair_special",
            share=rules.get("anchor_share", 1.0),
            advance=advance,
        )
    if not edit:
        pair = replace(pair, round_trip=round_trip(own.model, own.tokenizer, pair.state))
    pair.save(folder)


def input_embeddings(model: "PreTrainedModel") -> Tensor:
    """The input embedding table, V × D, without a copy."""
    rows: Tensor = model.get_input_embeddings().weight.detach()
    return rows


def _fingerprint(embeddings_VD: Tensor) -> str:
    """Hash of the values, the same in every precision that can hold them."""
    sha = hashlib.sha256()
    for rows_ND in torch.split(embeddings_VD, 4096):
        sha.update(rows_ND.float().cpu().numpy().tobytes())
    return sha.hexdigest()
