"""Full-size models with random weights, for cost measurements without a checkpoint."""

from typing import TYPE_CHECKING, Any

from harness.models.architecture import CatalogueEntry

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


def configuration(entry: CatalogueEntry) -> "PretrainedConfig":
    """The Hugging Face configuration of an entry's shape, without dropout."""
    from transformers import AutoConfig

    common: dict[str, Any] = {"vocab_size": entry.vocab, "tie_word_embeddings": entry.tied, **entry.settings}
    if entry.architecture == "gptj":
        return AutoConfig.for_model(
            "gptj",
            n_embd=entry.hidden,
            n_inner=entry.ffn,
            n_layer=entry.n_layers,
            n_head=entry.n_heads,
            n_positions=entry.max_positions,
            attn_pdrop=0.0,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            **common,
        )
    if entry.architecture == "gpt_neo":
        pairs, rest = divmod(entry.n_layers, 2)
        common = {"attention_types": [[["global", "local"], pairs], [["global"], rest]], **common}
    elif entry.architecture == "opt":
        common = {"word_embed_proj_dim": entry.hidden, **common}
    shape = {
        "hidden_size": entry.hidden,
        "intermediate_size": entry.ffn,
        "num_hidden_layers": entry.n_layers,
        "num_attention_heads": entry.n_heads,
        "num_key_value_heads": entry.n_kv_heads,
        "max_position_embeddings": entry.max_positions,
    }
    other = _OTHER_NAMES.get(entry.architecture, {})
    fields = {field: size for name, size in shape.items() if (field := other.get(name, name)) is not None}
    return AutoConfig.for_model(entry.architecture, **fields, **common)


def random_model(entry: CatalogueEntry, dtype: str, device: "torch.device", seed: int = 0) -> "PreTrainedModel":
    """Create a model of an entry's shape, with weights drawn directly in their final precision and on their final device.

    No second or float32 copy ever exists: peak memory is the model itself.
    """
    import torch
    from transformers import AutoModelForCausalLM

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), device:
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            configuration(entry), dtype=getattr(torch, dtype), attn_implementation=entry.layout.attention_kernel
        )
    return model


def byte_tokenizer(entry: CatalogueEntry) -> "PreTrainedTokenizerBase":
    """Byte-level tokenizer for a model without one: `vocab` ids, of which only the 256 bytes and BOS occur in texts."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    specials = ["<s>", "</s>"]
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens += specials
    tokens += [f"<unused{number}>" for number in range(entry.vocab - len(tokens))]
    backend = Tokenizer(BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if entry.adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokens.index("<s>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
