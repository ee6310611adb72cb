"""Meta-training against written-out weights, what it must learn, and how it fails."""

import dataclasses
import itertools
from contextlib import contextmanager

import pytest
import torch
from torch.func import functional_call

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from harness.models.submodels import streams
from harness.models.weights import weight_hash
from harness.run.flops import FlopCounter
from methods.common import transforms
from methods.common.factors import factors_of
from methods.common.prediction import examples
from methods.mend import prefix
from methods.mend.editor import Mend
from methods.mend.prefix import PrefixCache
from methods.mend.training import Task, Trainer, build, train
from tests.helpers.tiny_mend import REF, TRAIN, TinyContext, double, hparams_with
from tests.helpers.tiny_models import ARCHITECTURES, rounding, tiny_model


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def tasks_of(model, implementation="corrected"):
    return [Task(e.edit, e.outer[0], e.locality[-1]) for e in examples(model, TRAIN, implementation)]


def trainer_of(architecture, seed=0, **changes):
    model = double(tiny_model(architecture))
    trainer = Trainer(model, hparams_with(architecture, **changes), seed)
    trainer.hypernetwork.double()
    with torch.no_grad():
        for parameter in trainer.hypernetwork.transforms.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model, trainer


def slow_losses(model, trainer, task):
    """One edit by itself: whole model, weights written out, losses by definition."""
    hypernetwork = trainer.hypernetwork
    modules = {m.name: model.model.get_submodule(m.name.removesuffix(".weight")) for m in hypernetwork.matrices}
    entering = streams(model, [task.edit.ids], 0)
    updates = hypernetwork(factors_of(model, modules, entering, 0, [task.edit], torch.ones(1)))
    edited = {name: module.weight + updates[name].total() for name, module in modules.items()}

    def log_probs(row, weights):
        logits = functional_call(model.model, weights, (), {"input_ids": torch.tensor([row.ids])}).logits[0]
        return logits[list(row.places)].log_softmax(-1)

    right = log_probs(task.outer, edited)
    edit = -sum(right[n, label] for n, label in enumerate(task.outer.labels)) / len(task.outer.labels)
    before, after = log_probs(task.locality, {}), log_probs(task.locality, edited)
    divergence = (before.exp() * (before - after)).sum(-1).mean()
    return edit, divergence


@pytest.mark.parametrize("implementation", ["corrected", "faithful-easyedit"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_with_fast_weights_equals_edit_after_edit_with_written_out_weights(architecture, implementation):
    model, trainer = trainer_of(architecture, implementation=implementation)
    tasks = tasks_of(model, implementation)
    trainer.losses(tasks, observes=True)
    parameters = list(trainer.hypernetwork.parameters())
    fast = trainer.losses(tasks, observes=False)
    slow = [torch.stack(losses) for losses in zip(*(slow_losses(model, trainer, task) for task in tasks), strict=True)]
    error = max((one - other).abs().max().item() for one, other in zip(fast, slow, strict=True))
    gradients = zip(
        torch.autograd.grad(sum(part.sum() for part in fast), parameters),
        torch.autograd.grad(sum(part.sum() for part in slow), parameters),
        strict=True,
    )
    worst = max(((one - other).abs().max() / other.abs().max()).item() for one, other in gradients)
    print(f"{architecture}, {implementation}: losses {error:.1e}, gradients of the hypernetwork, relative {worst:.1e}")
    assert error < rounding(architecture, 1e-10)
    assert worst < rounding(architecture, 1e-7)
    assert min(part.min().item() for part in slow) > 1e-4, "both losses must have something to say"


@pytest.mark.parametrize("first_layer", [0, 1])
def test_without_an_edit_rate_nothing_is_edited(first_layer):
    model, trainer = trainer_of("llama", edit_lr=0.0, layers=[first_layer, 1] if first_layer == 0 else [1])
    tasks = tasks_of(model)
    edit, divergence = trainer.losses(tasks, observes=True)
    assert divergence.abs().max() < 1e-14
    log_probs = model.model(input_ids=torch.tensor([tasks[0].outer.ids])).logits[0].log_softmax(-1)
    labelled = zip(tasks[0].outer.places, tasks[0].outer.labels, strict=True)
    expected = -torch.stack([log_probs[place, label] for place, label in labelled]).mean()
    torch.testing.assert_close(edit[0], expected, rtol=1e-10, atol=0)


def test_training_learns_updates_that_carry_over_to_rephrases():
    model = tiny_model("llama")
    changes = {"steps": 100, "validate_every": 20, "patience": 100, "lr": 3e-3, "lr_of_edit_lr": 1e-2, "edit_lr": -0.01}
    _, looks = train(model, examples(model, TRAIN, "corrected"), hparams_with(**changes), 0, TinyContext(model))
    assert looks[-1].trained < 0.75 * looks[0].trained


def test_training_stops_when_patience_ends_and_gives_the_best():
    model, context = tiny_model("llama"), TinyContext()
    made, changes = examples(model, TRAIN, "corrected"), {"validate_every": 1, "patience": 3, "lr": 0.3}
    found, looks = train(model, made, hparams_with(steps=200, **changes), 0, context)
    best = min(looks, key=lambda look: look.held_out)
    assert looks[-1].step == best.step + 3 < 200
    assert context.steps == looks[-1].step
    stopped, again = train(model, made, hparams_with(steps=best.step, **changes), 0, context)
    assert again[-1] == best
    assert all(torch.equal(value, stopped.state_dict()[name]) for name, value in found.state_dict().items())


def test_statistics_are_learned_from_what_is_learned_from_and_from_nothing_else():
    model, trainer = trainer_of("llama")
    tasks = tasks_of(model)

    def counts():
        return [transform.count.item() for transform in trainer.hypernetwork.transforms.values()]

    trainer.losses(tasks[:2], observes=True)
    before = counts()
    assert min(before) > 0
    trainer.held_out(tasks)
    assert counts() == before
    trainer.losses(tasks[2:], observes=True)
    assert all(now > then for now, then in zip(counts(), before, strict=True))


def test_what_is_held_out_is_never_learned_from(monkeypatch):
    model, seen = tiny_model("llama"), []
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, tasks: seen.extend(tasks) or step(self, tasks))
    held_out = []
    look = Trainer.held_out
    monkeypatch.setattr(Trainer, "held_out", lambda self, tasks: held_out.extend(tasks) or look(self, tasks))
    made = examples(model, TRAIN, "corrected")
    train(model, made, hparams_with(steps=6, train_batch=3), 0, TinyContext(model))
    assert {task.edit for task in seen} == {e.edit for e in made} - {task.edit for task in held_out}
    assert len({task.outer for task in seen}) == len({task.locality for task in seen}) == 6, (
        "each rephrase has its turn"
    )


def test_a_training_that_diverges_says_so():
    model = tiny_model("llama")
    with pytest.raises(UserError, match=r"diverged by step 2.*lr: "):
        train(
            model, examples(model, TRAIN, "corrected"), hparams_with(lr=1e18, lr_of_edit_lr=1e18), 0, TinyContext(model)
        )


TARGET = ModelRef("tinyllama-1.1b", "pretrained")


def spec_of(**changes):
    return Mend(hparams_with(**changes)).artifacts(TARGET, REF, 0)["hypernetwork"]


def test_the_artifact_is_the_same_for_a_seed_and_leaves_the_model_alone(tmp_path):
    written = []
    for name in ("first", "second"):
        context = TinyContext()
        before = weight_hash(context.model.model)
        (tmp_path / name).mkdir()
        build(spec_of(), context, tmp_path / name)
        assert weight_hash(context.model.model) == before
        assert context.clock.phases == ["setup"]
        written.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert written[0] == written[1]
    assert sorted(written[0]) == sorted([transforms.WEIGHTS, transforms.TRAINING])


def test_records_without_rephrase_or_probe_teach_nothing(tmp_path):
    bare = [
        dataclasses.replace(TRAIN[0], rephrases=()),
        dataclasses.replace(TRAIN[1], locality=()),
        dataclasses.replace(TRAIN[2], locality=()),
        *TRAIN[3:],
    ]
    with pytest.raises(UserError, match="1 of 4 have both; 1 of them are held out"):
        build(spec_of(validation=2), TinyContext(train=tuple(bare)), tmp_path)


@pytest.mark.parametrize(("records", "held_out"), [(2, 1), (64, 12), (256, 51), (1000, 200), (4096, 500)])
def test_of_few_records_a_fifth_is_held_out(records, held_out):
    mend = Mend(hparams_with(validation=500))
    (spec,) = mend.artifacts(TARGET, dataclasses.replace(REF, train=5000, examples=records), 0).values()
    assert spec.identity["hparams"]["validation"] == held_out
    (large,) = mend.artifacts(TARGET, dataclasses.replace(REF, train=5000, examples=5000), 0).values()
    assert (spec.key == large.key) == (held_out == 500)


def test_too_few_records_with_a_rephrase_are_told_when_a_suite_is_planned():
    few = dataclasses.replace(REF, train=1000, examples=1)
    with pytest.raises(UserError, match=r"mend learns from .* but 1 of the 1,000 of 'tiny' have both"):
        Mend(hparams_with()).artifacts(TARGET, few, 0)
    Mend(hparams_with(implementation="faithful-easyedit")).artifacts(
        TARGET, few, 0
    )  # learns from the edited prompt itself


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cached_prefixes_are_those_of_a_fresh_run(architecture, monkeypatch):
    model = double(tiny_model(architecture))
    short, middle, long = sorted({task.outer.ids for task in tasks_of(model)}, key=len)[:3]
    assert len(short) < len(middle), "padding must matter"
    runs = []
    monkeypatch.setattr(prefix, "streams", lambda m, new, layer: runs.append(list(new)) or streams(m, new, layer))
    cache = PrefixCache(model, 1)
    cache.streams([short, middle])
    found = cache.streams([short, long, short])
    assert runs == [[short, middle], [long]], "each sequence runs once"
    expected = streams(model, [short, long, short], 1)
    inside = expected.mask_BT.bool()
    torch.testing.assert_close(found.residual_BTD[inside], expected.residual_BTD[inside], rtol=1e-7, atol=1e-10)
    assert torch.equal(found.mask_BT, expected.mask_BT)
    assert torch.equal(found.positions_BT, expected.positions_BT)
    alone = cache.streams([short])
    assert alone.residual_BTD.shape[1] == len(short)


def test_all_steps_cost_the_same():
    """FLOPs of a few steps stand for all; every step has the same three records here, with the same rows."""
    model, so_far = tiny_model("llama"), []
    made = [
        dataclasses.replace(example, outer=example.outer[:1], locality=example.locality[:1])
        for example in examples(model, TRAIN, "corrected")
    ]

    class Watched(TinyContext):
        @contextmanager
        def progress(self, _description, _total):
            so_far.append(counter.flops)
            yield lambda _steps=1: so_far.append(counter.flops)

    with FlopCounter() as counter:
        changes = {"layers": [1], "steps": 3, "train_batch": 3, "validate_every": 3}
        train(model, made, hparams_with(**changes), 0, Watched(model))
    before, *steps = itertools.pairwise([0, *so_far])
    assert before[1] > 0
    assert len({end - start for start, end in steps}) == 1
    assert len(steps) == 3


def test_a_full_cache_still_serves(monkeypatch):
    monkeypatch.setattr(prefix, "BUDGET_BYTES", 0)
    model = tiny_model("llama")
    rows = [task.outer.ids for task in tasks_of(model)]
    cache = PrefixCache(model, 1)
    cache.fill(rows, 1)
    first, second = cache.streams(rows), cache.streams(rows)
    assert torch.equal(first.residual_BTD, second.residual_BTD)
    assert not cache._kept
