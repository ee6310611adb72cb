"""Hyper-parameters of OnceEdit: the edit stage (shared by all target models), the pair, and decoding."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from harness.api import Hparams
from harness.suite.schema import ModelForm
from methods.common.threshold import Threshold

EDIT_STAGE = (
    "lr",
    "epochs",
    "batch",
    "lambda_weight",
    "negatives",
    "negative_weight",
    "hard_negatives",
    "paraphrases",
    "focal_gamma",
    "weight_decay",
    "stop_accuracy",
    "stop_bce",
    "editor",
    "contexts",
    "lora_rank",
    "precision",
    "gradient_checkpointing",
    "plugin_embeddings",
)
"""The keys that determine what the plug-in learns; together with plug-in, data and seed, the identity of the edit."""


PREFIXES = "prefixes"
"""The role of the context prefixes among the needs of an edit."""

LATER = {"decode": "exact", "anchor_share": 1.0, "hard_negatives": 0.0, "paraphrases": 0, "focal_gamma": 0.0}
"""Usual values of keys that were added later; they are not part of any identity."""

EARLIER = "earlier"
"""The role of the plug-in with the edits of earlier blocks, among the needs of an edit in sequence."""

EDITS = "edits"
"""The state of an edited model: the number of its edits, which says which plug-in of a sequence it has."""


class OnceEditHparams(Hparams):
    """All hyper-parameters of OnceEdit; values and their sources are in `methods/hparams/onceedit/`.

    Attributes:
        plugin: the plug-in: a catalogue name, or an entry as under `models`, `{name: …, revision: …}`.
        lr, epochs, batch, weight_decay: AdamW on all plug-in weights; `batch` counts edits and negatives together.
        lambda_weight: weight of the `[WEIGHT]` loss relative to the generation loss (eq. 7).
        negatives: unrelated prompts per edit and epoch (0.5: one for two edits), limited by the number of available prompts.
        negative_weight: weight of a negative in the `[WEIGHT]` loss relative to an edit; 1 is the plain mean of eq. 6.
        hard_negatives: share of the negatives that are the train prompts most similar to the edits (`wordings.hard_pool`); 0: all
            are drawn at random.
        paraphrases: other wordings of each edit, made of train records' rephrases (`wordings.reworded`), that it is also trained
            with; rephrases of train records are then negatives too.
        focal_gamma: exponent of the focal loss of `[WEIGHT]`; 0: binary cross entropy (eq. 6).
        stop_accuracy, stop_bce: training stops after the first epoch that reaches both.
        editor: what edits the plug-in: `full` (all weights), `lora`, or a registered method that changes weights (`method` or
            `method.variant`), with its own hyper-parameters for the plug-in. In that case only `batch`, `lambda_weight`,
            `negatives`, `negative_weight`, `hard_negatives`, `paraphrases` and `stop_bce` apply, for learning `[WEIGHT]` on the
            resulting hidden states.
        contexts: context prefixes (`methods.common.prefixes`) before each edit and each unrelated prompt, in addition to the plain
            prompt, so that an edit also holds after other text.
        replay: in a sequence, edits of earlier blocks per edit of a block and epoch, so that they are not unlearned.
        lora_rank: rank of the updates; used only by `lora`.
        precision: precision of the forward and backward passes; weights and updates are fp32 in either case.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        anchors: how the two vocabularies are matched (see `anchors.pair_anchors`).
        anchor_share: share of the matched tokens that serve as anchors, to study how much overlap the method needs.
        relative: rule of the relative rows (see `relative.RelativeState`): `plain` and `deepen` are the paper's, `centred`
            and `whitened` are for embeddings that share a direction, as those of pretrained models do.
        temperature: factor of the cosines in the rows' softmax; used only by `centred` and `whitened`.
        plugin_embeddings: `trained` with all other weights (editor `full`), or `frozen`: then the plug-in's relative state is
            computed once per pair and shared by all edits.
        alpha: `learned` from `[WEIGHT]`; from the `similarity` to the edited prompts (`methods.common.similarity`); `both`, the
            larger of the two; or `fixed` to `alpha_fixed`.
        similarity_threshold, similarity_slope: σ(slope · (similarity - threshold)) is the alpha of `similarity`; the threshold
            can be `calibrated` on train records (see `methods.common.threshold`).
        similarity_subject: share of the subject's tokens in the similarity to an edited prompt.
        alpha_gate: below this alpha, keep the target model's own greedy token; 0 turns the gate off.
        per_step_alpha: compute alpha at every step instead of once per prompt.
        keep_own: keep the target model's own token if the plug-in does not change the arg-max over the anchors.
        sync: how the plug-in follows the text: `retokenize` the text, or `map` each fused anchor to the plug-in's own id.
        decoder, init, target, search_steps, search_lr: decoding from anchor space back to a token (see `decoders`); `gac` and
            `unite` fuse over the union of the two vocabularies instead (see `union`), the latter each model's `top_k` tokens.
        decode: `exact`, one token per forward pass of the target model, or `speculative`, the same tokens from several per
            pass where the plug-in's drafts are right (see `speculative`).
        eos: `deepen` (the target model's own end of text takes precedence) or `pair_special` (special tokens are paired as
            anchors by role).
    """

    plugin: str | ModelForm
    lr: float = Field(gt=0)
    epochs: int = Field(ge=1)
    batch: int = Field(ge=1)
    lambda_weight: float = Field(ge=0)
    negatives: int | float = Field(ge=0)
    negative_weight: float = Field(gt=0)
    hard_negatives: float = Field(ge=0, le=1)
    paraphrases: int = Field(ge=0)
    focal_gamma: float = Field(ge=0)
    weight_decay: float = Field(ge=0)
    stop_accuracy: float = Field(ge=0, le=1)
    stop_bce: float = Field(ge=0)
    editor: str
    contexts: int = Field(ge=0)
    replay: float = Field(ge=0)
    lora_rank: int = Field(ge=1)
    precision: Literal["fp32", "bf16"]
    gradient_checkpointing: bool
    anchors: Literal["deepen", "bytes"]
    anchor_share: float = Field(gt=0, le=1)
    relative: Literal["deepen", "plain", "centred", "whitened"]
    temperature: float = Field(gt=0, le=100)
    plugin_embeddings: Literal["trained", "frozen"]
    alpha: Literal["learned", "similarity", "both", "fixed"]
    similarity_threshold: Threshold
    similarity_slope: float = Field(gt=0)
    similarity_subject: float = Field(ge=0, le=1)
    alpha_fixed: float = Field(ge=0, le=1)
    alpha_gate: float = Field(ge=0, le=1)
    per_step_alpha: bool
    keep_own: bool
    sync: Literal["retokenize", "map"]
    decoder: Literal["search", "column", "owner", "gac", "unite"]
    top_k: int = Field(ge=1)
    init: Literal["zero", "llm"]
    target: Literal["onehot", "soft"]
    search_steps: int = Field(ge=1)
    search_lr: float = Field(gt=0)
    decode: Literal["exact", "speculative"]
    eos: Literal["deepen", "pair_special"]

    @property
    def passes_per_edit(self) -> float:
        """None through the target model: the edited plug-in is an artifact."""
        return 0.0

    @model_validator(mode="after")
    def _one_decoder_per_target(self) -> Self:
        if self.target == "soft" and self.decoder != "search":
            raise ValueError(
                f"decoder '{self.decoder}' reads one column of a one-hot target; a soft target needs 'search'"
            )
        if self.init == "llm" and self.decoder == "owner":
            raise ValueError("decoder 'owner' has no search to start from the model's logits; use 'column' or 'search'")
        return self

    @model_validator(mode="after")
    def _drafts_can_be_verified(self) -> Self:
        if self.decode == "speculative" and (
            self.sync == "map" or self.decoder not in ("owner", "column") or self.init == "llm"
        ):
            raise ValueError(
                "decode 'speculative' needs sync 'retokenize' and a token that depends on the fused anchor alone: decoder "
                "'owner', or 'column' with init 'zero'"
            )
        return self

    @model_validator(mode="after")
    def _one_similarity_per_prompt(self) -> Self:
        if self.remembers and self.per_step_alpha:
            raise ValueError(f"alpha '{self.alpha}' is a property of the prompt; per_step_alpha needs alpha 'learned'")
        return self

    @model_validator(mode="after")
    def _anchors_where_they_are_needed(self) -> Self:
        if not self.fuses_anchors and (self.sync == "map" or self.keep_own):
            raise ValueError(f"decoder '{self.decoder}' has no anchors, which sync 'map' and keep_own need")
        return self

    @property
    def fuses_anchors(self) -> bool:
        """Whether fusion goes through anchor space, and so needs the relative states."""
        return self.decoder not in ("gac", "unite")

    @property
    def unscored(self) -> str:
        """Why the decoder gives tokens no probabilities, one clause; empty if it does (see `scoring`)."""
        if self.decoder == "owner":
            return "decoder 'owner' looks tokens up, without probabilities"
        if not self.fuses_anchors:
            return f"decoder '{self.decoder}' gives probabilities to the union of both vocabularies, not to ids of one"
        return ""

    @property
    def remembers(self) -> bool:
        """Whether alpha needs a memory of the edited prompts."""
        return self.alpha in ("similarity", "both")

    def identity(self) -> dict[str, Any]:
        """All values, with the plug-in's name only: its files are in the identity of the artifacts made from it.

        Values of `similarity` are left out where alpha does not depend on them, and so are the usual values of `LATER`, and
        `top_k` without `decoder: unite`, so that cells are those from before there was a choice. `replay` is in the identity of
        the artifacts that depend on it.
        """
        values = without_usual({**super().identity(), "plugin": self.plugin_entry.name})
        if self.decoder != "unite":
            del values["top_k"]
        del values["replay"]
        return {key: value for key, value in values.items() if self.remembers or not key.startswith("similarity_")}

    @property
    def plugin_dtype(self) -> str | None:
        """Precision of the edited plug-in; None for the one that its entry declares.

        Half precision rounds too coarsely to tell whether a draft is right (see `rounding`).
        """
        return "float32" if self.decode == "speculative" else None

    @property
    def plugin_entry(self) -> ModelForm:
        """The plug-in as an entry, from either notation."""
        return ModelForm.model_validate(self.plugin)


def without_usual(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values without those that are usual among `LATER`."""
    return {key: value for key, value in values.items() if key not in LATER or value != LATER[key]}


def edit_stage_values(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the edit stage, from the identity of a plug-in that was edited with them."""
    return {**{key: value for key, value in LATER.items() if key in EDIT_STAGE}, **identity["hparams"]}
