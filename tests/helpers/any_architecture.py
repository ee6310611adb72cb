"""A tiny model of each architecture that a plug-in may have, without a tokenizer."""

from functools import cache

import torch

from tests.helpers.tiny_models import precise, rounding, tiny_model

ANY_ARCHITECTURE = ("llama", "mistral", "qwen2", "gemma2", "gemma3_text", "gptj")
N_IDS = 160
"""Ids that every one of them has."""


@cache
def any_architecture(name):
    """Windows hold 4 or 5 ids."""
    return tiny_model(name).model.to(precise(name))


def tolerance(name):
    return rounding(name, fp64=1e-9, fp32=1e-4)


@torch.no_grad()
def hidden_alone(model, ids):
    """The final hidden state of the last id, with the model's own mask and positions, no batch and no cache."""
    return model.base_model(input_ids=torch.tensor([list(ids)]), use_cache=False).last_hidden_state[0, -1]
