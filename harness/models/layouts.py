"""Where the modules that methods edit are inside a Hugging Face model, by model type. Does not import torch."""

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class Layout:
    """Module paths inside the Hugging Face model; `{}` stands for the layer index.

    Attributes:
        block: one transformer block; its output is the residual stream after the whole block.
        attention, mlp: the attention and feed-forward modules of a block.
        value_matrix: the second feed-forward matrix, whose input is the key and whose output is the value of an edit.
        final_norm, head, embeddings: the norm after the last block, the vocabulary projection, the token embeddings.
        attention_kernel: attention implementation, explicit so that results do not depend on installed packages.
        value_norm: norm of the value matrix's output before it is added to the residual stream; None if there is none.
        positions: learned position embeddings, which are added to the token embeddings; None for rotary positions.
        counts_columns: whether some layers measure their attention window in columns of the key-value cache, whatever the
            positions of the ids in them.
    """

    block: str
    attention: str
    mlp: str
    value_matrix: str
    final_norm: str
    head: str
    embeddings: str
    attention_kernel: Literal["sdpa", "eager"]
    value_norm: str | None = None
    positions: str | None = None
    counts_columns: bool = False

    @classmethod
    def of(
        cls,
        blocks: str,
        attention: str,
        value_matrix: str,
        final_norm: str,
        embeddings: str,
        attention_kernel: Literal["sdpa", "eager"],
        positions: str | None = None,
        counts_columns: bool = False,
    ) -> "Layout":
        """Build a layout from the path of the block list, module names inside a block, and module names next to the list."""
        block, base = f"{blocks}.{{}}", blocks.rpartition(".")[0]
        return cls(
            block,
            f"{block}.{attention}",
            f"{block}.mlp",
            f"{block}.mlp.{value_matrix}",
            f"{base}.{final_norm}",
            "lm_head",
            f"{base}.{embeddings}",
            attention_kernel,
            positions=positions and f"{base}.{positions}",
            counts_columns=counts_columns,
        )


_LLAMA_LIKE = Layout.of("model.layers", "self_attn", "down_proj", "norm", "embed_tokens", "sdpa")
_GEMMA_LIKE = replace(_LLAMA_LIKE, value_norm="model.layers.{}.post_feedforward_layernorm")
LAYOUTS: dict[str, Layout] = {
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "qwen3": _LLAMA_LIKE,
    "phi3": _LLAMA_LIKE,
    "gemma2": replace(_GEMMA_LIKE, attention_kernel="eager"),  # sdpa ignores its cap on attention scores
    "gemma3_text": _GEMMA_LIKE,
    "gptj": Layout.of("transformer.h", "attn", "fc_out", "ln_f", "wte", "eager"),
    "gpt_neo": Layout.of(
        "transformer.h", "attn", "c_proj", "ln_f", "wte", "eager", positions="wpe", counts_columns=True
    ),
    "gpt_neox": Layout.of("gpt_neox.layers", "attention", "dense_4h_to_h", "final_layer_norm", "embed_in", "sdpa"),
}
"""Layouts by `model_type` of the configuration."""
