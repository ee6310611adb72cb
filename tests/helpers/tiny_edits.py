"""A few facts, models with a layer below and one above the edited one, and the context that an editor asks for."""

import contextlib
import dataclasses
from types import SimpleNamespace

import torch

from harness.models.catalogue import ModelRef
from harness.models.loaded import LoadedModel
from harness.models.random_weights import random_model
from harness.records import EditRequest
from harness.tokens import joint_query
from tests.helpers.tiny_models import tiny_spec, tiny_tokenizer

FACTS = [
    ("The mother tongue of Danielle Darrieux is", "French"),
    ("The capital of France is", "Yamoussoukro"),
    ("Björk was born in", "Reykjavík and Yamoussoukro"),
    ("東京 is the capital of", "日本"),
    ("The Eiffel Tower is located in Paris, the capital of", "Iceland"),
    ("What is the capital of Côte d'Ivoire?", "Paris is the capital of France and the home of the Eiffel Tower"),
]
UNRELATED = [
    ("The tongue of mother Tower is", "born"),
    ("What was Paris?", "the capital of 日本"),
    ("France", "is in Paris"),
]


class Context:
    """What an editor asks of its context: a seed, a clock that measures nothing, a progress bar that nobody sees."""

    seed = 3

    clock = SimpleNamespace(phase=lambda _name: contextlib.nullcontext())

    @staticmethod
    def progress(_description, _total):
        return contextlib.nullcontext(lambda _steps=1: None)


def three_layers(architecture, dtype=torch.float64):
    """A layer below the codebook's, so that keys depend on more than a token, and one above it."""
    torch.set_num_threads(1)
    entry = dataclasses.replace(tiny_spec(architecture), n_layers=3)
    model = random_model(entry, "float32", torch.device("cpu"), 0).eval().requires_grad_(False).to(dtype)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.mul_(8)  # as in `tiny_model`: answers depend on every token
    return LoadedModel(ModelRef(f"tiny/{architecture}", "trained"), model, tiny_tokenizer(architecture))


def requests_of(facts):
    return [EditRequest(str(index), prompt, "", target, "") for index, (prompt, target) in enumerate(facts)]


def queries_of(model, facts):
    return [joint_query(model.tokenizer, *fact) for fact in facts]


def read_by_head(model, edited, queries):
    """The states that the head reads for each query under teacher forcing."""
    seen = []
    handle = model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    edited.teacher_forced(queries)
    handle.remove()
    return seen[0].split([len(query.target_ids) for query in queries])
