"""Hyper-parameters of OnceEdit: of the edit stage (shared by all target models), of the pair, and of decoding."""

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.api import Hparams

EDIT_STAGE = (
    "lr",
    "epochs",
    "batch",
    "lambda_weight",
    "negatives",
    "negative_weight",
    "weight_decay",
    "stop_accuracy",
    "stop_bce",
    "editor",
    "lora_rank",
    "precision",
    "gradient_checkpointing",
)
"""The keys that decide what the plug-in learns; with plug-in, data and seed they are the identity of the edit."""


class OnceEditHparams(Hparams):
    """All choices of OnceEdit; the values with their sources are in `methods/hparams/onceedit/`.

    Attributes:
        plugin: catalogue name of the plug-in.
        lr, epochs, batch, weight_decay: AdamW on all plug-in weights; `batch` is edits and negatives together.
        lambda_weight: weight of the `[WEIGHT]` loss beside the generation loss (eq. 7).
        negatives: unrelated prompts per edit in an epoch, at most as many as the training records give.
        negative_weight: weight of a negative in the `[WEIGHT]` loss relative to an edit; 1 is the plain mean of eq. 6.
        stop_accuracy, stop_bce: training stops after the first epoch that reaches both.
        editor: what edits the plug-in: `full` (all weights), `lora`, or a method of the registry that changes weights, with
            its own values for the plug-in; then only `batch`, `lambda_weight`, `negatives`, `negative_weight` and
            `stop_bce` are read here, to learn `[WEIGHT]` on the hidden states that the method leaves.
        lora_rank: rank of the updates; read only by `lora`.
        precision: of the forward and backward passes; the weights and their updates are fp32 in both.
        gradient_checkpointing: recompute activations in the backward pass: less memory, more time.
        anchors: how two vocabularies are matched (see `anchors.pair_anchors`).
        relative: temperature of the relative rows (see `relative.RelativeState`).
        alpha: `learned` from `[WEIGHT]`, or `fixed` at `alpha_fixed`.
        alpha_gate: below this alpha the target model's own greedy token is taken; 0 is off.
        per_step_alpha: read alpha at every step instead of once per prompt.
        keep_own: where the plug-in does not move the arg-max over the anchors, the target model's own token is taken.
        sync: how the plug-in follows the text: `retokenize` it, or `map` each fused anchor to the plug-in's own id.
        decoder, init, target, search_steps, search_lr: from anchor space back to a token (see `decoders`).
        eos: `deepen` (the target model's own end of text wins) or `pair_special` (special tokens are anchors by role).
    """

    plugin: str
    lr: float = Field(gt=0)
    epochs: int = Field(ge=1)
    batch: int = Field(ge=1)
    lambda_weight: float = Field(ge=0)
    negatives: int = Field(ge=0)
    negative_weight: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    stop_accuracy: float = Field(ge=0, le=1)
    stop_bce: float = Field(ge=0)
    editor: str
    lora_rank: int = Field(ge=1)
    precision: Literal["fp32", "bf16"]
    gradient_checkpointing: bool
    anchors: Literal["deepen", "bytes"]
    relative: Literal["deepen", "plain"]
    alpha: Literal["learned", "fixed"]
    alpha_fixed: float = Field(ge=0, le=1)
    alpha_gate: float = Field(ge=0, le=1)
    per_step_alpha: bool
    keep_own: bool
    sync: Literal["retokenize", "map"]
    decoder: Literal["search", "column", "owner"]
    init: Literal["zero", "llm"]
    target: Literal["onehot", "soft"]
    search_steps: int = Field(ge=1)
    search_lr: float = Field(gt=0)
    eos: Literal["deepen", "pair_special"]

    @model_validator(mode="after")
    def _one_decoder_per_target(self) -> Self:
        if self.target == "soft" and self.decoder != "search":
            raise ValueError(
                f"decoder '{self.decoder}' reads one column of a one-hot target; a soft target needs 'search'"
            )
        if self.init == "llm" and self.decoder == "owner":
            raise ValueError("decoder 'owner' has no search to start from the model's logits; use 'column' or 'search'")
        return self
