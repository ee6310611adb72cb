"""Two-layer models with random weights and a tokenizer of their own, for tests that need a real forward pass."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from harness.models.catalogue import CATALOGUE, CatalogueEntry, ModelRef
from harness.models.loaded import LoadedModel
from harness.models.random_weights import random_model
from harness.models.spec import ModelSpec
from harness.models.unflattened import unflatten

ARCHITECTURES = ("llama", "mistral", "gptj")

FAMILIES = {
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen3": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "head_dim": 16},
    "phi3": {"sliding_window": 4, "pad_token_id": 0},
    "gemma2": {"sliding_window": 4, "head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 4.0},
    "gemma3_text": {"sliding_window": 4, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window_pattern": 2},
    "gpt_neo": {"window_size": 4},
    "gpt_neox": {},
    "gemma": {"head_dim": 16},
    "gpt2": {},
    "phi": {"partial_rotary_factor": 0.5},
    "olmo2": {},
    "falcon": {"multi_query": True},
    "falcon-40b": {"new_decoder_architecture": True},
    "falcon-rw": {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True},
    "opt": {},
    "opt-projected": {"word_embed_proj_dim": 16},
    "stablelm": {"use_qkv_bias": True, "qk_layernorm": True},
    "cohere": {"logit_scale": 0.25, "use_qk_norm": True},
}
"""Further architectures, whose layers differ: some have a window of four ids and others none, or other rotary positions."""
VARIANTS = {"falcon-40b": "falcon", "falcon-rw": "falcon", "opt-projected": "opt"}
"""Model types of those that are named otherwise."""
TIED = ("gemma2", "gemma3_text", "gpt_neo", "gpt2", "opt", "opt-projected", "falcon", "falcon-rw", "cohere")


SENTENCES = (
    "The mother tongue of Danielle Darrieux is French",
    "What is the capital of Côte d'Ivoire? Yamoussoukro",
    "Björk was born in Reykjavík, Iceland",
    "東京 is the capital of 日本",
    "The Eiffel Tower is located in Paris, the capital of France",
)

QUESTIONS = (
    ("The mother tongue of Danielle Darrieux is", "French"),
    ("Paris", "is the capital of France and the home of the Eiffel Tower"),
    ("What is the capital of Côte d'Ivoire?", "Yamoussoukro"),
    ("東京 is the capital of", "日本"),
    ("Björk was born in", "Reykjavík and Yamoussoukro"),
    ("The Eiffel Tower is located in Paris, the capital of France, and the mother tongue of Björk is", "a"),
)


@cache
def tiny_tokenizer(architecture: str) -> PreTrainedTokenizerFast:
    """`Ġ` bytes without a BOS for GPT-J, `▁` words with one for all others."""
    backend = Tokenizer(BPE(unk_token="<unk>"))
    has_spaces = architecture != "gptj"
    alphabet = [] if has_spaces else pre_tokenizers.ByteLevel.alphabet()
    backend.pre_tokenizer = (
        pre_tokenizers.Metaspace(prepend_scheme="first") if has_spaces else pre_tokenizers.ByteLevel(False)
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="first") if has_spaces else decoders.ByteLevel()
    size = {"mistral": 260, "gptj": 330}.get(architecture, 300)
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    if has_spaces:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def tiny_spec(architecture: str) -> ModelSpec:
    """Two layers of width 32; windows are shorter than the tests' prompts."""
    settings = {"llama": {}, "mistral": {"sliding_window": 5}, "gptj": {"rotary_dim": 4}, **FAMILIES}[architecture]
    shape = {"n_layers": 2, "hidden": 32, "ffn": 48, "vocab": len(tiny_tokenizer(architecture)), "settings": settings}
    if architecture in ARCHITECTURES:
        return dataclasses.replace(CATALOGUE[f"tiny/{architecture}"].spec, **shape)
    return dataclasses.replace(
        CATALOGUE["tiny/llama"].spec,
        architecture=VARIANTS.get(architecture, architecture),
        n_kv_heads=4 if architecture.startswith("gpt") or architecture == "falcon-rw" else 2,
        tied=architecture in TIED,
        **shape,
    )


@contextmanager
def catalogued_families() -> Iterator[None]:
    """The catalogue has an entry `tiny/<architecture>` for each of `FAMILIES` inside the body."""
    with pytest.MonkeyPatch.context() as patch:
        for architecture in FAMILIES:
            name = f"tiny/{architecture}"
            patch.setitem(CATALOGUE, name, CatalogueEntry(name, name, "", tiny_spec(architecture)))
        yield


def precise(architecture: str) -> torch.dtype:
    """The widest precision that a model of this architecture can run in.

    Gemma 2 computes its softmax in fp32, where the masks that transformers makes for an fp64 model are infinite.
    """
    return torch.float32 if architecture == "gemma2" else torch.float64


def rounding(architecture: str, fp64: float, fp32: float = 1e-5) -> float:
    """The error that a test of models in fp64 allows for.

    GPT-J and GPT-Neo compute their attention scores in fp32 whatever their weights are, and Gemma its norms, and how these
    round depends on the shape of the batch and on the machine.
    """
    return fp64 if architecture in ("llama", "mistral", "qwen2", "qwen3", "phi3", "gpt_neox") else fp32


def tiny_model(architecture: str, seed: int = 0) -> LoadedModel:
    """A frozen float32 model on the CPU whose answers depend on every token and its place."""
    model = random_model(tiny_spec(architecture), "float32", torch.device("cpu"), seed).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.mul_(8)  # the usual initialisation makes attention nearly uniform, and then order does not matter
    unflatten(model)
    return LoadedModel(ModelRef(f"tiny/{architecture}", "trained"), model, tiny_tokenizer(architecture))
