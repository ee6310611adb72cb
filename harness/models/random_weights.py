"""Models with random weights of any shape, for cost measurements without a checkpoint, or without storage."""

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from harness.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


_OTHER_NAMES: dict[str, dict[str, str | None]] = {
    "gpt2": {"intermediate_size": "n_inner", "num_key_value_heads": None},
    "falcon": {"intermediate_size": "ffn_hidden_size", "num_key_value_heads": "num_kv_heads"},
    "opt": {"intermediate_size": "ffn_dim", "num_key_value_heads": None},
    "gpt_neo": {"num_key_value_heads": None},
    "gpt_neox": {"num_key_value_heads": None},
}
"""Fields that have another name in some configurations; None where there are as many keys as queries."""


def configuration(spec: ModelSpec) -> "PretrainedConfig":
    """The Hugging Face configuration of the shape of a spec, without dropout."""
    from transformers import AutoConfig

    common: dict[str, Any] = {"vocab_size": spec.vocab, "tie_word_embeddings": spec.tied, **spec.settings}
    if spec.architecture == "gptj":
        return AutoConfig.for_model(
            "gptj",
            n_embd=spec.hidden,
            n_inner=spec.ffn,
            n_layer=spec.n_layers,
            n_head=spec.n_heads,
            n_positions=spec.max_positions,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            **common,
        )
    if spec.architecture == "gpt_neo":
        pairs, rest = divmod(spec.n_layers, 2)
        common = {"attention_types": [[["global", "local"], pairs], [["global"], rest]], **common}
    elif spec.architecture == "opt":
        common = {"word_embed_proj_dim": spec.hidden, **common}
    shape = {
        "hidden_size": spec.hidden,
        "intermediate_size": spec.ffn,
        "num_hidden_layers": spec.n_layers,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "max_position_embeddings": spec.max_positions,
    }
    other = _OTHER_NAMES.get(spec.architecture, {})
    fields = {field: size for name, size in shape.items() if (field := other.get(name, name)) is not None}
    return AutoConfig.for_model(spec.architecture, **fields, **common)


def parameters_of(spec: ModelSpec) -> int:
    """Number of parameters of a model of this shape, counted on one without storage; tied matrices count once."""
    return sum(parameter.numel() for parameter in shell(spec).parameters())


@lru_cache(maxsize=8)
def _shell(architecture: str, config: str) -> "PreTrainedModel":
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(architecture, **json.loads(config))
        )
    return model


def shell(spec: ModelSpec) -> "PreTrainedModel":
    """A model of this shape without storage for its parameters, to inspect its modules."""
    given = configuration(spec).to_dict()
    return _shell(given.pop("model_type"), json.dumps(given, sort_keys=True, default=str))


def random_model(spec: ModelSpec, dtype: str, device: "torch.device", seed: int = 0) -> "PreTrainedModel":
    """Create a model of the shape of a spec, with weights drawn directly in their final precision and on their final device.

    No second or float32 copy ever exists: peak memory is the model itself.
    """
    import torch
    from transformers import AutoModelForCausalLM

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), device:
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            configuration(spec), dtype=getattr(torch, dtype), attn_implementation=spec.layout.attention_kernel
        )
    return model


def byte_tokenizer(spec: ModelSpec) -> "PreTrainedTokenizerBase":
    """Byte-level tokenizer for a model without one: `vocab` ids, of which only the 256 bytes and BOS occur in texts."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    specials = ["<s>", "</s>"]
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += specials
    tokens += [f"<unused{number}>" for number in range(spec.vocab - len(tokens))]
    backend = Tokenizer(BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if spec.adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokens.index("<s>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
