"""A tiny model of each architecture that a plug-in may have, in fp64, without a tokenizer."""

import dataclasses
from functools import cache

import torch

from harness.models.catalogue import CATALOGUE
from harness.models.random_weights import random_model
from tests.helpers.tiny_models import rounding, tiny_model

ANY_ARCHITECTURE = ("llama", "mistral", "qwen2", "gptj")
N_IDS = 160
"""Ids that every one of them has."""


@cache
def any_architecture(name):
    """Mistral's window holds 5 ids."""
    if name != "qwen2":
        return tiny_model(name).model.double()
    entry = dataclasses.replace(
        CATALOGUE["qwen2.5-1.5b"], n_layers=2, hidden=32, ffn=48, vocab=N_IDS, n_heads=4, n_kv_heads=2
    )
    model = random_model(entry, "float64", torch.device("cpu"), 0).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.mul_(8)
    return model


def tolerance(name):
    return rounding(name, fp64=1e-9, fp32=1e-4)


@torch.no_grad()
def hidden_alone(model, ids):
    """The final hidden state of the last id, with the model's own mask and positions, no batch and no cache."""
    return model.base_model(input_ids=torch.tensor([list(ids)]), use_cache=False).last_hidden_state[0, -1]
