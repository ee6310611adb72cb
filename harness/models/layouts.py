"""Paths of the modules that methods edit inside a Hugging Face model, by model type. Does not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness.errors import UserError

Kernel = Literal["sdpa", "eager"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Module paths inside the Hugging Face model; `{}` stands for the layer index.

    Attributes:
        block: one transformer block; its output is the residual stream after the whole block.
        attention: the attention module of a block.
        mlp: the module that holds the feed-forward matrices of a block; the block itself if it has no other (OPT).
        matrices: names of the feed-forward matrices inside `mlp`, the value matrix last.
        value_matrix: the second feed-forward matrix, whose input is the key and whose output is the value of an edit.
        final_norm, head, embeddings: the norm after the last block, the vocabulary projection, the token embeddings.
        attention_kernel: attention implementation, explicit so that results do not depend on installed packages.
        value_norm: RMSNorm of the value matrix's output before it is added to the residual stream; None if there is none.
        positions: learned position embeddings, which are added to the token embeddings; None for all other positions.
        position_offset: row of `positions` that belongs to position 0.
        project_in, project_out: projections between the width of the embeddings and that of the blocks (small OPT models).
        counts_columns: whether some layers measure their attention window in columns of the key-value cache, whatever the
            positions of the ids in them.
        takes_masks: whether it attends as an additive mask for each row says; a model with ALiBi needs masks of ones and
            zeros, which it turns into distances.
    """

    block: str
    attention: str
    mlp: str
    matrices: tuple[str, ...]
    value_matrix: str
    final_norm: str
    head: str
    embeddings: str
    attention_kernel: Kernel
    value_norm: str | None = None
    positions: str | None = None
    position_offset: int = 0
    project_in: str | None = None
    project_out: str | None = None
    counts_columns: bool = False
    takes_masks: bool = True

    @classmethod
    def of(
        cls,
        blocks: str,
        attention: str,
        matrices: tuple[str, ...],
        final_norm: str,
        embeddings: str,
        attention_kernel: Kernel = "sdpa",
        *,
        mlp: str | None = "mlp",
        positions: str | None = None,
        counts_columns: bool = False,
    ) -> "Layout":
        """Build a layout from the path of the block list, module names inside a block, and module names next to the list."""
        block, base = f"{blocks}.{{}}", blocks.rpartition(".")[0]
        holder = f"{block}.{mlp}" if mlp else block
        return cls(
            block,
            f"{block}.{attention}",
            holder,
            matrices,
            f"{holder}.{matrices[-1]}",
            f"{base}.{final_norm}",
            "lm_head",
            f"{base}.{embeddings}",
            attention_kernel,
            positions=positions and f"{base}.{positions}",
            counts_columns=counts_columns,
        )

    @property
    def backbone(self) -> str:
        """The module that holds the list of blocks, and runs them."""
        return self.block.removesuffix(".{}").rpartition(".")[0]


_LLAMA_LIKE = Layout.of("model.layers", "self_attn", ("gate_proj", "up_proj", "down_proj"), "norm", "embed_tokens")
_NORMED = replace(_LLAMA_LIKE, value_norm="model.layers.{}.post_feedforward_layernorm")
LAYOUTS: dict[str, Layout] = {
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "qwen3": _LLAMA_LIKE,
    "phi3": replace(_LLAMA_LIKE, matrices=("gate_up_proj", "down_proj")),
    "gemma": _LLAMA_LIKE,
    "stablelm": _LLAMA_LIKE,
    "cohere": _LLAMA_LIKE,
    "olmo2": _NORMED,
    "gemma2": replace(_NORMED, attention_kernel="eager"),  # sdpa ignores its cap on attention scores
    "gemma3_text": _NORMED,
    "phi": Layout.of("model.layers", "self_attn", ("fc1", "fc2"), "final_layernorm", "embed_tokens"),
    "gptj": Layout.of("transformer.h", "attn", ("fc_in", "fc_out"), "ln_f", "wte", "eager"),
    "gpt2": Layout.of("transformer.h", "attn", ("c_fc", "c_proj"), "ln_f", "wte", positions="wpe"),
    "gpt_neo": Layout.of(
        "transformer.h", "attn", ("c_fc", "c_proj"), "ln_f", "wte", "eager", positions="wpe", counts_columns=True
    ),
    "gpt_neox": Layout.of(
        "gpt_neox.layers", "attention", ("dense_h_to_4h", "dense_4h_to_h"), "final_layer_norm", "embed_in"
    ),
    "falcon": Layout.of(
        "transformer.h", "self_attention", ("dense_h_to_4h", "dense_4h_to_h"), "ln_f", "word_embeddings"
    ),
    "opt": replace(
        Layout.of(
            "model.decoder.layers",
            "self_attn",
            ("fc1", "fc2"),
            "final_layer_norm",
            "embed_tokens",
            mlp=None,
            positions="embed_positions",
        ),
        position_offset=2,
    ),
}
"""Layouts by `model_type` of the configuration."""


def layout_of(config: Mapping[str, Any]) -> Layout | None:
    """The layout of a model, from its configuration (`config.json`); None for an unknown model type.

    Raises:
        UserError: for an option that no method can be right with.
    """
    model_type = config.get("model_type", "")
    layout = LAYOUTS.get(model_type)
    if layout is None:
        return None
    if model_type == "falcon" and config.get("alibi"):
        return replace(layout, takes_masks=False)
    if model_type == "opt":
        if not config.get("do_layer_norm_before", True) or config.get("_remove_final_layer_norm"):
            raise UserError(
                "this OPT model normalises the residual stream after each feed-forward module "
                "(do_layer_norm_before: false), so an edit of a value is not a change of the stream",
                fix="another size of OPT: only opt-350m does this",
            )
        if config.get("word_embed_proj_dim") not in (None, config.get("hidden_size")):
            base = layout.backbone
            return replace(layout, project_in=f"{base}.project_in", project_out=f"{base}.project_out")
    return layout
