"""The supported architectures: tensors and parameter counts. Does not import torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

from harness.models.layouts import LAYOUTS, Layout, layout_of

TABULATED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "gptj", "gpt_neo", "gpt_neox")
"""Model types whose tensors `tensor_shapes` knows."""
Dtype = Literal["float32", "bfloat16", "float16"]

DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


COMPUTED = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
"""Ends of the names of buffers (masks, rotary tables) that old checkpoints contain and models compute themselves."""

Shapes = dict[str, tuple[int, ...]]


@cache
def tensor_shapes(
    architecture: str,
    *,
    n_layers: int,
    hidden: int,
    ffn: int,
    vocab: int,
    n_heads: int,
    n_kv_heads: int,
    head_size: int,
    max_positions: int,
    tied: bool,
    attention_bias: bool = False,
    mlp_bias: bool = False,
) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters, as a checkpoint holds them.

    Args:
        architecture, n_layers, hidden, ffn, vocab, n_heads, n_kv_heads, head_size, max_positions: see `CatalogueEntry`.
        tied: whether head and embeddings share one matrix, which is then listed as the embeddings only.
        attention_bias, mlp_bias: options of some configurations.
    """
    blocks = LAYOUTS[architecture].block.rpartition(".")[0]
    layout, base = LAYOUTS[architecture], blocks.rpartition(".")[0]
    has_norm_bias = architecture in ("gptj", "gpt_neo", "gpt_neox")
    queries, keys = n_heads * head_size, n_kv_heads * head_size
    match architecture:
        case "gptj":
            block = _norms(["ln_1"], hidden, has_norm_bias)
            for name in "qkv":
                block |= _linear(f"attn.{name}_proj", queries, hidden)
            block |= _linear("attn.out_proj", hidden, queries)
            block |= _linear("mlp.fc_in", ffn, hidden, True) | _linear("mlp.fc_out", hidden, ffn, True)
        case "gpt_neo":
            block = _norms(["ln_1", "ln_2"], hidden, has_norm_bias)
            for name in "qkv":
                block |= _linear(f"attn.attention.{name}_proj", queries, hidden)
            block |= _linear("attn.attention.out_proj", hidden, queries, True)
            block |= _linear("mlp.c_fc", ffn, hidden, True) | _linear("mlp.c_proj", hidden, ffn, True)
        case "gpt_neox":
            block = _norms(["input_layernorm", "post_attention_layernorm"], hidden, has_norm_bias)
            block |= _linear("attention.query_key_value", 3 * queries, hidden, attention_bias)
            block |= _linear("attention.dense", hidden, queries, attention_bias)
            block |= _linear("mlp.dense_h_to_4h", ffn, hidden, True) | _linear("mlp.dense_4h_to_h", hidden, ffn, True)
        case _:
            block = _norms(["input_layernorm", "post_attention_layernorm"], hidden, has_norm_bias)
            if architecture in ("gemma2", "gemma3_text"):
                block |= _norms(["pre_feedforward_layernorm", "post_feedforward_layernorm"], hidden, has_norm_bias)
            if architecture in ("qwen3", "gemma3_text"):
                block |= _norms(["self_attn.q_norm", "self_attn.k_norm"], head_size, has_norm_bias)
            if architecture == "phi3":
                block |= _linear("self_attn.qkv_proj", queries + 2 * keys, hidden)
                block |= _linear("mlp.gate_up_proj", 2 * ffn, hidden)
            else:
                for name, rows in (("q", queries), ("k", keys), ("v", keys)):
                    block |= _linear(f"self_attn.{name}_proj", rows, hidden, attention_bias or architecture == "qwen2")
                for name in ("gate", "up"):
                    block |= _linear(f"mlp.{name}_proj", ffn, hidden, mlp_bias)
            block |= _linear("self_attn.o_proj", hidden, queries, attention_bias)
            block |= _linear("mlp.down_proj", hidden, ffn, mlp_bias)
    shapes: Shapes = {f"{layout.embeddings}.weight": (vocab, hidden)}
    if architecture == "gpt_neo":
        shapes |= {f"{base}.wpe.weight": (max_positions, hidden)}
    shapes |= {f"{blocks}.{layer}.{name}": shape for layer in range(n_layers) for name, shape in block.items()}
    shapes |= _norms([layout.final_norm], hidden, has_norm_bias)
    head = _linear(layout.head, vocab, hidden, architecture == "gptj")
    return MappingProxyType(shapes | {name: shape for name, shape in head.items() if not (tied and len(shape) == 2)})


def _linear(name: str, rows: int, columns: int, has_bias: bool = False) -> Shapes:
    return {f"{name}.weight": (rows, columns), **({f"{name}.bias": (rows,)} if has_bias else {})}


def _norms(names: Sequence[str], width: int, has_bias: bool) -> Shapes:
    parts = ("weight", "bias") if has_bias else ("weight",)
    return {f"{name}.{part}": (width,) for name in names for part in parts}


@cache
def _count(architecture: str, **sizes: int) -> int:
    return sum(map(math.prod, tensor_shapes(architecture, **sizes).values()))


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """Facts about a model that are known without loading it.

    Attributes:
        name: name in a suite, `llama2-7b`.
        title: name in a table, `Llama2-7B`.
        hub_id: where the published weights are, a hub id or `package:<distribution>`; empty for a tiny model, which is
            trained on the spot.
        hidden, ffn, n_layers, n_heads, n_kv_heads, vocab: its shape; for a tiny model `vocab` is an upper bound, and the
            tokenizer trained with it determines the actual size.
        max_positions: longest sequence that it was trained on.
        dtype: precision that it is loaded in unless a suite says otherwise.
        adds_bos: whether its tokenizer starts every text with a beginning-of-sequence id.
        tied: whether head and embeddings share one matrix.
        terms: address of terms of use that whoever downloads it has to accept: a run does not download it then.
        settings: further fields of its Hugging Face configuration.
    """

    name: str
    title: str
    hub_id: str
    architecture: str
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
    terms: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """Module paths of its architecture."""
        layout = layout_of({"model_type": self.architecture, "hidden_size": self.hidden, **self.settings})
        if layout is None:
            raise ValueError(f"no layout for model type {self.architecture}")
        return layout

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
        names = ("n_layers", "hidden", "ffn", "vocab", "n_heads", "n_kv_heads", "head_size", "max_positions", "tied")
        sizes = {name: getattr(self, name) for name in names}
        return _count(self.architecture, **sizes, attention_bias=self.architecture == "gpt_neox")

    def memory_bytes(self, dtype: str | None = None) -> int:
        """Size of its weights in bytes in `dtype` (default: its own), without activations and caches."""
        return self.parameters * DTYPE_BYTES[dtype or self.dtype]
