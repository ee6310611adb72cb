"""The four supported architectures: module paths and parameter counts. Does not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Architecture = Literal["llama", "mistral", "qwen2", "gptj"]
Dtype = Literal["float32", "bfloat16", "float16"]

DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Layout:
    """Module paths inside the Hugging Face model; `{}` stands for the layer index.

    Attributes:
        block: one transformer block; its output is the residual stream after the whole block.
        attention, mlp: the attention and feed-forward modules of a block.
        value_matrix: the second feed-forward matrix, whose input is the key and whose output is the value of an edit.
        final_norm, head, embeddings: the norm after the last block, the vocabulary projection, the token embeddings.
        attention_kernel: attention implementation, explicit so that results do not depend on installed packages.
    """

    block: str
    attention: str
    mlp: str
    value_matrix: str
    final_norm: str
    head: str
    embeddings: str
    attention_kernel: Literal["sdpa", "eager"]

    @classmethod
    def of(
        cls,
        blocks: str,
        attention: str,
        value_matrix: str,
        final_norm: str,
        embeddings: str,
        attention_kernel: Literal["sdpa", "eager"],
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
        )


_LLAMA_LIKE = Layout.of("model.layers", "self_attn", "down_proj", "norm", "embed_tokens", "sdpa")
LAYOUTS: dict[Architecture, Layout] = {
    "llama": _LLAMA_LIKE,
    "mistral": _LLAMA_LIKE,
    "qwen2": _LLAMA_LIKE,
    "gptj": Layout.of("transformer.h", "attn", "fc_out", "ln_f", "wte", "eager"),
}
"""Layouts by `model_type` of the configuration."""


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """Facts about a model that are known without loading it.

    Attributes:
        name: name in a suite, `llama2-7b`.
        title: name in a table, `Llama2-7B`.
        hub_id: hub id of the published weights; empty for a tiny model, which is trained on the spot.
        hidden, ffn, n_layers, n_heads, n_kv_heads, vocab: its shape; for a tiny model `vocab` is an upper bound, and the
            tokenizer trained with it determines the actual size.
        max_positions: longest sequence that it was trained on.
        dtype: precision that it is loaded in unless a suite says otherwise.
        adds_bos: whether its tokenizer starts every text with a beginning-of-sequence id.
        tied: whether head and embeddings share one matrix.
        settings: further fields of its Hugging Face configuration.
    """

    name: str
    title: str
    hub_id: str
    architecture: Architecture
    n_layers: int
    hidden: int
    ffn: int
    vocab: int
    n_heads: int
    n_kv_heads: int
    max_positions: int
    dtype: Dtype
    adds_bos: bool
    tied: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """Module paths of its architecture."""
        return LAYOUTS[self.architecture]

    @property
    def is_trained_here(self) -> bool:
        """Whether it is trained from scratch on the facts of a dataset instead of being downloaded."""
        return not self.hub_id

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.n_heads

    @property
    def parameters(self) -> int:
        """Exact parameter count; tied matrices count once."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        if self.architecture == "gptj":
            attention = 4 * self.hidden**2
            feed_forward = 2 * self.hidden * self.ffn + self.ffn + self.hidden
            norms = 2 * self.hidden
            return embeddings + self.vocab + self.n_layers * (attention + feed_forward + norms) + 2 * self.hidden
        kv_width = self.n_kv_heads * self.head_size
        attention = 2 * self.hidden**2 + 2 * self.hidden * kv_width
        if self.architecture == "qwen2":
            attention += self.hidden + 2 * kv_width
        feed_forward = 3 * self.hidden * self.ffn
        norms = 2 * self.hidden
        return embeddings + self.n_layers * (attention + feed_forward + norms) + self.hidden

    def memory_bytes(self, dtype: str | None = None) -> int:
        """Size of its weights in bytes in `dtype` (default: its own), without activations and caches."""
        return self.parameters * DTYPE_BYTES[dtype or self.dtype]
