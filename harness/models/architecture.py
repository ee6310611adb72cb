"""The supported architectures: module paths, tensors and parameter counts. Does not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

Architecture = Literal[
    "llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "gptj", "gpt_neo", "gpt_neox"
]
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
LAYOUTS: dict[Architecture, Layout] = {
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


COMPUTED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Ends of the names of buffers (masks, rotary tables) that old checkpoints contain and models compute themselves."""


DESCRIBED = ("llama", "mistral", "qwen2", "gptj")
"""Architectures whose tensors `tensor_shapes` knows; those of others are verified when a model is loaded."""


@cache
def tensor_shapes(
    architecture: Architecture,
    n_layers: int,
    *,
    hidden: int,
    ffn: int,
    vocab: int,
    n_heads: int,
    n_kv_heads: int,
    head_size: int,
    tied: bool,
    attention_bias: bool = False,
    mlp_bias: bool = False,
) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters, as a checkpoint holds them.

    Args:
        tied: whether head and embeddings share one matrix, which is then listed as the embeddings only.
        attention_bias, mlp_bias: options of Llama's configuration.
        n_layers, hidden, ffn, vocab, n_heads, n_kv_heads, head_size: see `CatalogueEntry`.
    """
    if architecture == "gptj":
        base, embeddings, norms = "transformer", "wte", {"ln_f.weight": (hidden,), "ln_f.bias": (hidden,)}
        blocks = "transformer.h"
        block: dict[str, tuple[int, ...]] = {
            "ln_1.weight": (hidden,),
            "ln_1.bias": (hidden,),
            **{f"attn.{name}_proj.weight": (hidden, hidden) for name in ("q", "k", "v", "out")},
            "mlp.fc_in.weight": (ffn, hidden),
            "mlp.fc_in.bias": (ffn,),
            "mlp.fc_out.weight": (hidden, ffn),
            "mlp.fc_out.bias": (hidden,),
        }
        head: dict[str, tuple[int, ...]] = {"lm_head.weight": (vocab, hidden), "lm_head.bias": (vocab,)}
    else:
        base, embeddings, norms, blocks = "model", "embed_tokens", {"norm.weight": (hidden,)}, "model.layers"
        rows = {
            "self_attn.q_proj": n_heads * head_size,
            "self_attn.k_proj": n_kv_heads * head_size,
            "self_attn.v_proj": n_kv_heads * head_size,
            "self_attn.o_proj": hidden,
            "mlp.gate_proj": ffn,
            "mlp.up_proj": ffn,
            "mlp.down_proj": hidden,
        }
        columns = {"self_attn.o_proj": n_heads * head_size, "mlp.down_proj": ffn}
        has_bias = dict.fromkeys(rows, attention_bias) | {name: mlp_bias for name in rows if name.startswith("mlp.")}
        if architecture == "qwen2":
            has_bias |= {f"self_attn.{name}_proj": name != "o" for name in "qkvo"}
        block = {
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
            **{f"{name}.weight": (count, columns.get(name, hidden)) for name, count in rows.items()},
            **{f"{name}.bias": (count,) for name, count in rows.items() if has_bias[name]},
        }
        head = {"lm_head.weight": (vocab, hidden)}
    if tied:
        del head["lm_head.weight"]
    layers = {f"{blocks}.{layer}.{name}": shape for layer in range(n_layers) for name, shape in block.items()}
    around = {
        f"{base}.{embeddings}.weight": (vocab, hidden),
        **{f"{base}.{name}": shape for name, shape in norms.items()},
    }
    return MappingProxyType({**around, **layers, **head})


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
        return int(self.settings.get("head_dim") or self.hidden // self.n_heads)

    @property
    def parameters(self) -> int:
        """Exact parameter count; tied matrices count once."""
        width, inner = self.hidden, self.ffn
        embeddings = self.vocab * width * (1 if self.tied else 2)
        queries, keys = self.n_heads * self.head_size, self.n_kv_heads * self.head_size
        match self.architecture:
            case "gptj":
                block = 4 * width**2 + (2 * width * inner + inner + width) + 2 * width
                return embeddings + self.vocab + self.n_layers * block + 2 * width
            case "gpt_neo":
                block = (4 * width**2 + width) + (2 * width * inner + inner + width) + 4 * width
                return embeddings + self.max_positions * width + self.n_layers * block + 2 * width
            case "gpt_neox":
                block = (4 * width**2 + 4 * width) + (2 * width * inner + inner + width) + 4 * width
                return embeddings + self.n_layers * block + 2 * width
        attention = 2 * width * queries + 2 * width * keys
        norms = 2 * width
        match self.architecture:
            case "qwen2":
                attention += queries + 2 * keys  # biases
            case "qwen3":
                norms += 2 * self.head_size  # of queries and keys
            case "gemma2":
                norms += 2 * width
            case "gemma3_text":
                norms += 2 * width + 2 * self.head_size
        return embeddings + self.n_layers * (attention + 3 * width * inner + norms) + width

    def memory_bytes(self, dtype: str | None = None) -> int:
        """Size of its weights in bytes in `dtype` (default: its own), without activations and caches."""
        return self.parameters * DTYPE_BYTES[dtype or self.dtype]
