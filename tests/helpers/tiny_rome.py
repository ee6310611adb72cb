"""Facts with subjects, artifacts written by hand, and a context, for tests of ROME, MEMIT and what they share."""

import dataclasses
import json
from contextlib import contextmanager

import torch
from safetensors.torch import load_file, save_file

from harness.models.catalogue import ModelRef
from harness.models.loaded import LoadedModel
from harness.models.random_weights import random_model
from harness.models.unflattened import unflatten
from harness.records import EditRequest
from harness.tokens import joint_query
from methods.common import anchor, moments, prefixes
from methods.common.aligned import enter
from methods.common.rewrites import rewrite
from methods.common.values import optimise
from tests.helpers.tiny_models import precise, tiny_spec, tiny_tokenizer

FACTS = (
    ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "Iceland"),
    ("What is the capital of Côte d'Ivoire?", "Côte d'Ivoire", "Paris"),
    ("Björk was born in", "Björk", "France and Reykjavík"),
    ("In 日本 the capital is located in 東京 and", "東京", "the Tower"),
)
OPENINGS = ("The mother tongue of", "What is located in", "Iceland, the capital is", "the Tower")
PREFIXES = ("The capital. ", "Therefore, it is. ", "Because of France. ", "I was born in Paris. ", "You. ")
"""One per first word, as one group of prefixes has them."""

VALUE = {
    "layers": [0],
    "v_lr": 0.2,
    "v_steps": 8,
    "v_weight_decay": 0.5,
    "v_clamp": 3.0,
    "v_loss_stop": 0.05,
    "kl_weight": 0.0625,
    "prefixes": [[10, 1]],
    "target_tokens": "joint",
}
MOMENTS = {"moments": "train_prompts", "moments_path": None, "moments_tokens": 10_000, "moments_ridge": 1e-6}


def requests():
    return [EditRequest(f"r{n}", prompt, subject, target, "") for n, (prompt, subject, target) in enumerate(FACTS)]


def countable(model):
    """Those whose subject ends where the ids of the text up to there say (see `rewrites.rewrite` on `alone`)."""
    return [request for request in requests() if request.record_id != "r1" or model.spec.architecture == "gptj"]


def easy_requests(model):
    """Facts that a random model can be taught: the subject ends the prompt and the target is one token."""
    prompts = [(f"{text} {subject}", subject) for text, (_, subject, _) in zip(OPENINGS, FACTS, strict=True)]
    words = [model.tokenizer.decode([n]).strip() for n in range(len(model.tokenizer))]
    short = [
        word
        for word in words
        if word.isalpha() and all(len(joint_query(model.tokenizer, p, word).target_ids) == 1 for p, _ in prompts)
    ]
    targets = short[-len(FACTS) :]
    assert len(targets) == len(FACTS)
    return [
        EditRequest(f"e{n}", prompt, subject, target, "")
        for n, ((prompt, subject), target) in enumerate(zip(prompts, targets, strict=True))
    ]


def able_model(architecture, dtype=None):
    """A model of three blocks, so that one lies behind two edited ones, which can be sure of an answer.

    With the usual small head no probability nears 1.
    """
    entry = dataclasses.replace(tiny_spec(architecture), n_layers=3)
    inner = random_model(entry, "float32", torch.device("cpu"), 0).eval().requires_grad_(False)
    for parameter in inner.parameters():
        if parameter.dim() == 2:
            parameter.mul_(8)
    inner.get_output_embeddings().weight.mul_(8)
    unflatten(inner)
    return LoadedModel(
        ModelRef(f"tiny/{architecture}", "trained"),
        inner.to(dtype or precise(architecture)),
        tiny_tokenizer(architecture),
    )


def write_prefixes(folder, texts=PREFIXES, groups=((10, 1),)):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / prefixes.FILE).write_text(json.dumps({"groups": groups, "prefixes": texts}))
    return folder


def write_anchor(folder, norms):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / anchor.FILE).write_text(json.dumps({"facts": 3, "norms": norms}))
    return folder


def random_moment(width, seed=0):
    """A symmetric positive definite matrix with a spread of eigenvalues, float64."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(3 * width, width, generator=generator, dtype=torch.float64) * torch.linspace(0.2, 2, width)
    return rows.T @ rows / len(rows)


def write_moments(folder, model, layers, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for layer in layers:
        lower_KK = torch.linalg.cholesky(random_moment(model.value_matrix(layer)[1].shape[1], seed + layer)).float()
        save_file({"lower": lower_KK.contiguous()}, folder / moments.file_name(layer))
    (folder / moments.FILE).write_text(json.dumps({"tokens": 123, "layers": list(layers)}))
    return folder


def read_moment(folder, layer):
    """What `write_moments` wrote: C."""
    lower_KK = load_file(folder / moments.file_name(layer))["lower"].double()
    return lower_KK @ lower_KK.T


class TinyContext:
    """As much of a context as editors and builders ask for."""

    device = "cpu"
    seed = 0

    def __init__(self, model=None, data=None):
        self.clock = self
        self.model = model
        self.data = data
        self.phases = []
        self.advanced = []

    @contextmanager
    def phase(self, name):
        self.phases.append(name)
        yield

    @contextmanager
    def progress(self, description, total):
        yield lambda steps=1: self.advanced.append(steps)

    def load_model(self, ref):
        return self.model

    def load_data(self, ref):
        return self.data


class SpoilingContext(TinyContext):
    """Ends in numbers that are none: once some requests are done, the model's head is NaN; `restored` puts it back."""

    def __init__(self, model):
        super().__init__(model)
        self._head_VD = model.head.weight.clone()

    @contextmanager
    def progress(self, description, total):
        yield lambda steps=1: self.model.head.weight.fill_(torch.nan)

    def restored(self):
        self.model.head.weight.copy_(self._head_VD)


@contextmanager
def adding(model, layer, column, delta):
    """The slow way: a hook on a block of the whole model adds a vector to its output at one column."""

    def add(module, arguments, output):
        stream = output[0] if isinstance(output, tuple) else output
        moved = stream.clone()
        moved[:, column] = moved[:, column] + delta
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = model.block(layer).register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def watch(model, layer, ids, column):
    """One unpadded row through the whole model: key and value of the layer's matrix and the block's output at a column."""
    seen = {}

    def at_matrix(module, arguments, output):
        seen["key"], seen["value"] = arguments[0][0, column].clone(), output[0, column].clone()

    def at_block(module, arguments, output):
        seen["stream"] = (output[0] if isinstance(output, tuple) else output)[0, column].clone()

    handles = [
        model.module(model.layout.value_matrix, layer).register_forward_hook(at_matrix),
        model.block(layer).register_forward_hook(at_block),
    ]
    with torch.no_grad():
        model.model(input_ids=torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return seen["key"], seen["value"], seen["stream"]


def probability(model, request):
    """Mean probability of the tokens of the new target, from the whole model."""
    query = joint_query(model.tokenizer, request.prompt, request.target_new)
    with torch.no_grad():
        logits_TV = model.model(input_ids=torch.tensor([query.prompt_ids + query.target_ids])).logits[0]
    places = range(len(query.prompt_ids) - 1, len(query.prompt_ids) + len(query.target_ids) - 1)
    chosen = [logits_TV[at].softmax(-1)[label] for at, label in zip(places, query.target_ids, strict=True)]
    return torch.stack(chosen).mean().item()


def plain_stream(model, request, layer):
    """What leaves a block at the plain prompt's subject."""
    row = rewrite(model, request, (), "joint").contexts[0]
    return watch(model, layer, row.ids[: row.pivot + 1], row.pivot)[2]


def slow_keys(model, facts, layer):
    """The mean key of each fact over the plain prompt and its prefixes, K × N: one unpadded row at a time."""
    keys = []
    for fact in facts:
        rows = rewrite(model, fact, PREFIXES, "joint").contexts
        plain_K, *others = (watch(model, layer, row.ids[: row.pivot + 1], row.pivot)[0] for row in rows)
        keys.append((plain_K + sum(others) / len(others)) / 2)
    return torch.stack(keys).T


def targets_of(model, facts, hparams, norm=None):
    """z of each request, each optimised by itself; with a norm, what the last matrix adds to it has this norm."""
    last = hparams.layers[-1]
    targets = []
    for fact in facts:
        made = rewrite(model, fact, PREFIXES, "joint")
        plain_D = plain_stream(model, fact, last)
        value = optimise(model, [made], enter(model, made.rows, last + 1), last + 1, plain_D.norm()[None], hparams)
        target_D = plain_D + value.delta_ND[0]
        if norm is not None:
            row = made.contexts[0]
            before_D = plain_D - watch(model, last, row.ids[: row.pivot + 1], row.pivot)[1]
            target_D = before_D + norm * (target_D - before_D) / (target_D - before_D).norm()
        targets.append(target_D)
    return torch.stack(targets)


def slow_layers(model, facts, hparams, update, norm=None):
    """A batch of MEMIT or AlphaEdit written out, one layer at a time, with the whole model; `update` is V × K."""
    targets_ND = targets_of(model, facts, hparams, norm)
    for done, layer in enumerate(hparams.layers):
        now_ND = torch.stack([plain_stream(model, fact, hparams.layers[-1]) for fact in facts])
        residual_DN = (targets_ND - now_ND).T / (len(hparams.layers) - done)
        with torch.no_grad():
            model.value_matrix(layer)[1].add_(update(layer, slow_keys(model, facts, layer), residual_DN))
