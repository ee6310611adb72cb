"""Facts in the words of small tokenizers, and how far apart two implementations move the same weights."""

import dataclasses

import torch

from harness.data.load import load as load_data
from harness.data.load import resolve
from harness.models.catalogue import ModelRef
from harness.models.loading import load
from harness.models.random_weights import random_model
from methods.common import prefixes
from tests.helpers.small_suites import small_spec, small_tokenizer
from tests.helpers.tiny_rome import TinyContext, write_moments, write_prefixes

CONTEXT = TinyContext()
GROUPS = [[5, 1], [10, 1]]
TEXTS = [f"{word} of {end}. " for end in ("the city", "all that was said") for word in prefixes.WORDS]


def three_layers(folder, architecture, **changes):
    """A checkpoint with a block behind two that are edited: in the last one, most answers cannot depend on an edit."""
    spec = dataclasses.replace(small_spec(architecture), n_layers=3, **changes)
    model = random_model(spec, "float32", torch.device("cpu"), 0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    model.save_pretrained(folder / architecture)
    small_tokenizer(architecture).save_pretrained(folder / architecture)
    torch.set_num_threads(1)
    return load(
        ModelRef(f"tiny/{architecture}", "pretrained", source=str(folder / architecture), dtype="float32"), "cpu"
    )


def facts(count=4):
    """Requests of the synthetic data, whose answers have several tokens."""
    return [record.request() for record in load_data(resolve("counterfact", "synthetic", 8, train=8)).edits[:count]]


def artifacts_of(model, folder, layers, seed=0):
    """Prefixes and statistics for ROME and MEMIT, written by hand, others for each seed."""
    return {
        "prefixes": write_prefixes(folder / "prefixes", TEXTS[seed:] + TEXTS[:seed], GROUPS),
        "moments": write_moments(folder / "moments", model, layers, 7 * seed),
    }


def changes(editor, model, requests, artifacts):
    """What an edit adds to each parameter that it changes; the model is as it was."""
    before = {name: value.detach().clone() for name, value in model.model.named_parameters()}
    edited = editor.edit(model, requests, artifacts, CONTEXT)
    moved = {name: value.detach() - before[name] for name, value in model.model.named_parameters()}
    edited.revert()
    assert all(torch.equal(value, before[name]) for name, value in model.model.named_parameters())
    return {name: value for name, value in moved.items() if value.any()}


def difference(theirs, ours, model, requests, artifacts):
    """How far our editor's changes are from EasyEdit's, relative to those; `pytest -s` shows it."""
    expected = changes(theirs, model, requests, artifacts)
    return reported(theirs.spec.title, model, apart(changes(ours, model, requests, artifacts), expected))


def reported(title, model, share):
    print(f"\n{title} on {model.ref.name}: {share:.0e} of EasyEdit's change")
    return share


def apart(first, second):
    """‖first - second‖ / ‖second‖ over all parameters (Frobenius)."""
    assert first.keys() == second.keys()
    assert second
    difference = sum((first[name] - second[name]).double().square().sum() for name in second)
    return float((difference / sum(value.double().square().sum() for value in second.values())).sqrt())
