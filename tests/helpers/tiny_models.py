"""Two-layer models with random weights and a tokenizer of their own, for tests that need a real forward pass."""

import dataclasses
from functools import cache

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from harness.models.architecture import CatalogueEntry
from harness.models.catalogue import CATALOGUE, ModelRef
from harness.models.loaded import LoadedModel
from harness.models.random_weights import random_model

ARCHITECTURES = ("llama", "mistral", "gptj")

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
    """`▁` words with a BOS for Llama and Mistral, `Ġ` bytes without one for GPT-J."""
    backend = Tokenizer(BPE(unk_token="<unk>"))
    has_spaces = architecture != "gptj"
    alphabet = [] if has_spaces else pre_tokenizers.ByteLevel.alphabet()
    backend.pre_tokenizer = (
        pre_tokenizers.Metaspace(prepend_scheme="first") if has_spaces else pre_tokenizers.ByteLevel(False)
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="first") if has_spaces else decoders.ByteLevel()
    size = {"llama": 300, "mistral": 260, "gptj": 330}[architecture]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SENTENCES, trainer)
    if has_spaces:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def tiny_entry(architecture: str) -> CatalogueEntry:
    """Two layers of width 32; Mistral's window is shorter than the tests' prompts."""
    return dataclasses.replace(
        CATALOGUE[f"tiny/{architecture}"],
        n_layers=2,
        hidden=32,
        ffn=48,
        vocab=len(tiny_tokenizer(architecture)),
        settings={"llama": {}, "mistral": {"sliding_window": 5}, "gptj": {"rotary_dim": 4}}[architecture],
    )


def rounding(architecture: str, fp64: float, fp32: float = 1e-5) -> float:
    """The error that a test of models in fp64 allows for.

    GPT-J computes its attention scores in fp32 whatever its weights are, and how these round depends on the shape of the batch
    and on the machine.
    """
    return fp32 if architecture == "gptj" else fp64


def tiny_model(architecture: str, seed: int = 0) -> LoadedModel:
    """A frozen float32 model on the CPU whose answers depend on every token and its place."""
    model = random_model(tiny_entry(architecture), "float32", torch.device("cpu"), seed).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.mul_(8)  # the usual initialisation makes attention nearly uniform, and then order does not matter
    return LoadedModel(ModelRef(f"tiny/{architecture}", "trained"), model, tiny_tokenizer(architecture))
