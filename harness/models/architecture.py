"""The supported architectures: tensors and parameter counts. Does not import torch."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

from harness.models.layouts import LAYOUTS

TABULATED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2", "gemma3_text", "gptj", "gpt_neo", "gpt_neox")
"""Model types whose tensors `tensor_shapes` knows."""
Dtype = Literal["float32", "bfloat16", "float16"]

DTYPE_BYTES: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}


COMPUTED = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
"""Suffixes of the names of buffers (masks, rotary tables) that old checkpoints contain and models compute themselves."""

Shapes = dict[str, tuple[int, ...]]

_KEYS = {
    "n_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd"),
    "ffn": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
    "vocab": ("vocab_size",),
    "n_heads": ("num_attention_heads", "n_head", "num_heads"),
    "n_kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "head_size": ("head_dim",),
    "max_positions": ("max_position_embeddings", "n_positions"),
}
"""Keys of the sizes in configurations, the usual one first."""
_OWN_KEY_HEADS = ("mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
"""Types whose default number of key heads differs from the number of heads."""
OWN_HEAD_SIZE = ("qwen3", "gemma", "gemma2", "gemma3_text")
"""Types whose default head size is not the width divided by the number of heads."""
_FOUR_TIMES = ("gptj", "gpt2", "gpt_neo", "falcon")
"""Types whose feed-forward modules are four times as wide as the model by default."""


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
        architecture, n_layers, hidden, ffn, vocab, n_heads, n_kv_heads, head_size, max_positions: see `ModelSpec`.
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
def parameter_count(architecture: str, **sizes: int) -> int:
    """Number of parameters of a model with tabulated tensors; the arguments are those of `tensor_shapes`."""
    return sum(map(math.prod, tensor_shapes(architecture, **sizes).values()))


def biases_of(architecture: str, config: Mapping[str, Any]) -> dict[str, bool]:
    """Optional biases that a configuration asks for, as arguments of `tensor_shapes`."""
    return {
        "attention_bias": bool(config.get("attention_bias", architecture == "gpt_neox")),
        "mlp_bias": architecture == "llama" and bool(config.get("mlp_bias")),
    }


def sizes_of(config: Mapping[str, Any]) -> tuple[dict[str, int], set[str]] | None:
    """The shape given by a configuration, as arguments of `tensor_shapes`, and the keys that it was read from.

    None where a size is missing: some types have defaults of their own, which only transformers knows.
    """
    architecture = config.get("model_type")
    found = {size: key for size, keys in _KEYS.items() for key in reversed(keys) if config.get(key)}
    sizes: dict[str, Any] = {size: config[key] for size, key in found.items()}
    if not {"hidden", "n_heads"} <= sizes.keys() or not all(isinstance(size, int) for size in sizes.values()):
        return None
    if architecture not in _OWN_KEY_HEADS:
        sizes.setdefault("n_kv_heads", sizes["n_heads"])
    if architecture not in OWN_HEAD_SIZE:
        sizes.setdefault("head_size", sizes["hidden"] // sizes["n_heads"])
    if architecture in _FOUR_TIMES:
        sizes.setdefault("ffn", 4 * sizes["hidden"])
    if architecture == "falcon" and not config.get("new_decoder_architecture"):
        sizes["n_kv_heads"] = 1 if config.get("multi_query", True) else sizes["n_heads"]
    return (sizes, set(found.values())) if sizes.keys() == _KEYS.keys() and min(sizes.values()) > 0 else None
