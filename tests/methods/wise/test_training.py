"""WISE's training against a slow twin on written-out weights; shards side by side; masks, bounds and stopping."""

from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from harness.errors import UserError
from harness.models.weights import weight_hash
from harness.tokens import joint_query
from methods.wise import training
from methods.wise.layout import LessonLayout
from methods.wise.training import Objective, learn, learn_lessons
from tests.helpers.tiny_edits import three_layers
from tests.helpers.tiny_models import ARCHITECTURES
from tests.helpers.tiny_wise import LAYER, hparams_with, lessons_of

EASYEDIT = {"implementation": "faithful-easyedit", "parallel": 1}


@pytest.fixture
def model():
    return three_layers("llama")


def learned(model, count, seed=0, **changes):
    lessons = lessons_of(model, count, **changes)
    return learn(model, lessons, hparams_with(**changes), seed, lambda steps=1: None)


def slow_objective(model, lesson, side_weight, hparams):
    """One whole forward pass per row with W' written into the model, everything by its definition."""
    name, weight = model.value_matrix(LAYER)
    matrix = model.module(model.layout.value_matrix, LAYER)
    bias = 0 if matrix.bias is None else matrix.bias
    is_easyedits = hparams.implementation == "faithful-easyedit"
    phi = torch.nn.functional.gelu if model.spec.architecture == "gptj" else torch.nn.functional.silu
    if model.spec.architecture == "gptj":
        phi = lambda x: torch.nn.functional.gelu(x, approximate="tanh")  # noqa: E731

    def run(ids, **given):
        """Keys and log-probabilities of a text; in EasyEdit W' has no bias beside it."""
        keys = []
        handle = matrix.register_forward_hook(lambda _module, inputs, _output: keys.append(inputs[0][0]))
        parameters = {name: side_weight}
        if matrix.bias is not None and is_easyedits:
            parameters[name.replace("weight", "bias")] = torch.zeros_like(bias)
        logits = functional_call(model.model, parameters, (), {"input_ids": torch.tensor([ids]), **given}).logits[0]
        handle.remove()
        own_bias = 0 if is_easyedits else bias
        gaps = [(phi(weight @ key + bias) - phi(side_weight @ key + own_bias)).norm() for key in keys[0]]
        return gaps, logits.log_softmax(-1)

    def forward(query):
        ids = query.prompt_ids + query.target_ids
        gaps, log_probs = run(ids)
        read = len(query.prompt_ids) if hparams.reads == "prompt" else len(ids)
        start, length = len(query.prompt_ids) - 1, len(query.target_ids)
        entropy = -sum(log_probs[start + step, id_] for step, id_ in enumerate(query.target_ids))
        return entropy / length, sum(gaps[:read]) / read

    def as_easyedit(query):
        """wise/utils.py:94-112 and WISE.py:263-277 on one row of the rectangle."""
        rows = [*lesson.edits, lesson.spared]
        width = max(len(row.prompt_ids + row.target_ids) for row in rows)
        masked = max(len(row.prompt_ids) for row in lesson.edits)
        ids = query.prompt_ids + query.target_ids
        padding = width - len(ids)
        mask = torch.tensor([[0] * padding + [1] * len(ids)])
        ids = [model.tokenizer.eos_token_id] * padding + list(ids)
        gaps, log_probs = run(ids, attention_mask=mask)
        labels = [-100 if place < max(masked, padding) else id_ for place, id_ in enumerate(ids)]
        last = labels.count(-100) - 1
        losses = [-log_probs[place, labels[place + 1]] * (labels[place + 1] != -100) for place in range(width - 1)]
        return sum(losses[last - 1 :]) / len(losses[last - 1 :]), sum(gaps) / width

    def positive_mean(values):
        positive = [value for value in values if value > 0]
        return sum(positive) / len(positive) if positive else 0.0

    asked = as_easyedit if is_easyedits else forward
    entropies, inside = zip(*(asked(query) for query in lesson.edits), strict=True)
    _, outside = asked(lesson.spared)
    loss = sum(entropies) / len(entropies)
    loss = loss + positive_mean([outside - score + hparams.gamma for score in inside])
    loss = loss + positive_mean([outside - hparams.alpha])
    loss = loss + positive_mean([hparams.beta - score for score in inside])
    return loss, sum(inside) / len(inside)


def slow_shard(model, lessons, mask, hparams):
    """Edit after edit with torch's own gradient descent, W' itself as the parameter."""
    _, weight = model.value_matrix(LAYER)
    side = torch.nn.Parameter(weight.detach().clone())
    threshold = float("inf")
    steps = 0
    for lesson in lessons:
        decay = hparams.weight_decay if hparams.decay == "all" else 0.0
        optimiser = torch.optim.SGD([side], lr=hparams.lr, weight_decay=decay)
        recorded = []
        for _ in range(hparams.steps):
            loss, activation = slow_objective(model, lesson, side, hparams)
            last = recorded[-2:]
            if len(last) == 2 and abs(last[1] - last[0]) <= hparams.stop_change and last[1] <= hparams.stop_loss:
                break
            recorded.append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            side.grad *= mask
            if hparams.decay == "masked":
                side.grad += hparams.weight_decay * side.detach() * mask
            optimiser.step()
            steps += 1
            with torch.no_grad():
                side.clamp_(weight - hparams.norm_constraint, weight + hparams.norm_constraint)
        threshold = min(threshold, activation.item())
    return (side - weight).detach(), threshold, steps


def long_text(model):
    """Longer than any edit, so that EasyEdit's mask ends before the prompt does."""
    return joint_query(
        model.tokenizer, "The home of the Eiffel Tower and of France and of the", "capital of the capital"
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "changes",
    [{}, EASYEDIT, EASYEDIT | {"contexts": 0}],
)
def test_the_objective_is_that_of_written_out_weights(architecture, changes):
    model, hparams = three_layers(architecture), hparams_with(**changes)
    lessons = lessons_of(model, 2, **changes)
    if "contexts" in changes:
        lessons = [replace(lesson, edits=lesson.edits[:1], spared=long_text(model)) for lesson in lessons]
    with torch.no_grad():
        for bias in (value for name, value in model.model.named_parameters() if name.endswith("fc_out.bias")):
            bias.add_(0.3)
    _, weight = model.value_matrix(LAYER)
    generator = torch.Generator().manual_seed(1)
    sides = 0.3 * torch.randn(2, *weight.shape, generator=generator, dtype=torch.float64)
    sides.requires_grad_()
    groups = [lessons] if hparams.implementation == "corrected" else [lessons[:1], lessons[1:]]
    layouts = [LessonLayout.of(model, group, hparams) for group in groups]
    found = [
        Objective(model, layout, hparams)(part)
        for layout, part in zip(layouts, sides.split(2 // len(groups)), strict=True)
    ]
    losses, activations = (torch.cat(values) for values in zip(*found, strict=True))
    (gradient,) = torch.autograd.grad(losses.sum(), sides)
    for shard, lesson in enumerate(lessons):
        side = (weight + sides[shard]).detach().requires_grad_()
        loss, activation = slow_objective(model, lesson, side, hparams)
        (expected,) = torch.autograd.grad(loss, side)
        error = ((gradient[shard] - expected).abs().max() / expected.abs().max()).item()
        print(f"{architecture}: loss {abs(losses[shard] - loss).item():.1e}, gradient, relative {error:.1e}")
        torch.testing.assert_close(losses[shard], loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(activations[shard], activation, rtol=1e-6, atol=0)
        assert error < 1e-5


@pytest.mark.parametrize("decay", ["masked", "all", "none"])
def test_a_shard_learns_what_plain_gradient_descent_learns_edit_after_edit(model, decay):
    changes = {"decay": decay, "save_freq": 3, "merge_freq": 3, "norm_constraint": 0.05, "steps": 5, "lr": 0.02}
    found = learned(model, 3, **changes)
    mask = torch.rand(found.sides[0].change_DK.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    change, threshold, steps = slow_shard(model, lessons_of(model, 3), mask, hparams_with(**changes))
    error = (found.sides[0].change_DK - change).abs().max().item()
    print(f"decay {decay}: shard against torch's SGD on W' {error:.1e} of {change.abs().max().item():.2f}")
    assert error < 1e-5
    assert found.sides[0].threshold == pytest.approx(threshold, rel=1e-5)
    assert found.steps * 3 == steps == 15
    assert change.abs().max() == pytest.approx(0.05), "the bound must be met"


def test_an_edit_stops_where_its_last_two_losses_hardly_differ(model):
    changes = {"stop_change": 0.1, "stop_loss": 100.0, "steps": 40, "save_freq": 2, "merge_freq": 2, "lr": 0.02}
    found = learned(model, 2, **changes)
    mask = torch.rand(found.sides[0].change_DK.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    change, threshold, steps = slow_shard(model, lessons_of(model, 2), mask, hparams_with(**changes))
    assert found.steps * 2 == steps < 80
    assert (found.sides[0].change_DK - change).abs().max() < 1e-5
    assert found.sides[0].threshold == pytest.approx(threshold, rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_shards_side_by_side_learn_what_they_learn_alone(architecture):
    """Three shards of two edits, the last with one; each stops where it stops."""
    model = three_layers(architecture)
    changes = {"stop_change": 0.05, "stop_loss": 100.0, "steps": 12, "lr": 0.02}
    together = learned(model, 5, parallel=3, **changes)
    alone = learned(model, 5, parallel=1, **changes)
    pairs = list(zip(together.sides, alone.sides, strict=True))
    error = max((one.change_DK - other.change_DK).abs().max().item() for one, other in pairs)
    print(f"{architecture}: shards in parallel against one after the other {error:.1e}")
    assert len(pairs) == 3
    assert error < 1e-6
    assert [one.threshold for one, _ in pairs] == pytest.approx([other.threshold for _, other in pairs], rel=1e-6)
    assert together.steps == pytest.approx(alone.steps)
    assert together.steps < 12, "some must stop before the others"


@pytest.mark.parametrize("decay", ["masked", "none", "all"])
def test_only_decay_of_all_entries_leaves_the_mask(model, decay):
    sides = learned(model, 4, decay=decay).sides
    changed = [side.change_DK != 0 for side in sides]
    if decay == "all":
        assert all(entries.all() for entries in changed)
        return
    shares = [entries.double().mean().item() for entries in changed]
    assert shares == pytest.approx([0.3, 0.3], abs=0.03)
    both = (changed[0] & changed[1]).double().mean().item()
    assert both == pytest.approx(0.09, abs=0.03), "each shard has a mask of its own"


def test_masks_depend_on_the_seed_alone(model):
    first, again, other = (
        learned(model, 4, seed=seed, parallel=parallel).sides for seed, parallel in [(1, 1), (1, 2), (2, 2)]
    )
    for one, same, different in zip(first, again, other, strict=True):
        assert torch.equal(one.change_DK != 0, same.change_DK != 0)
        assert not torch.equal(one.change_DK != 0, different.change_DK != 0)


def test_what_is_too_small_for_the_weight_is_no_change_in_easyedit():
    """One step of 1e-9 of W, in fp32: it rounds W' to W."""
    model = three_layers("llama", torch.float32)
    changes = {"decay": "all", "weight_decay": 1e-9, "lr": 1.0, "steps": 1, "mask_ratio": 1e-9, "save_freq": 1}
    exact, rounded = (learned(model, 1, **changes, **more).sides[0].change_DK for more in ({}, EASYEDIT))
    assert (exact != 0).all()
    assert not rounded.any()


def test_nothing_leaves_the_box(model):
    sides = learned(model, 2, norm_constraint=1e-3, lr=1.0).sides
    assert sides[0].change_DK.abs().max() == pytest.approx(1e-3)
    assert learned(model, 2, norm_constraint=None, lr=1.0).sides[0].change_DK.abs().max() > 1e-3


def test_a_shard_that_has_stopped_is_left_alone_while_others_go_on(model):
    hparams = hparams_with(stop_change=1e9, stop_loss=2.5, steps=9, alpha=1e9, beta=-1e9, gamma=-1e9, lr=0.01)
    lessons = lessons_of(model, 2)
    changes = torch.zeros(2, *model.value_matrix(LAYER)[1].shape, dtype=torch.float64)
    changes[0] = well_learned(model, lessons[0])
    changes_before = changes.clone()
    masks = torch.ones_like(changes, dtype=torch.bool)
    weight = model.value_matrix(LAYER)[1].detach()
    found = learn_lessons(model, lessons, changes, masks, weight, hparams)
    assert found.steps_S.tolist() == [2, 9]
    assert (changes[0] - changes_before[0]).abs().max() > 0
    alone = changes_before[:1].clone()
    learn_lessons(model, lessons[:1], alone, masks[:1], weight, hparams)
    assert (changes[0] - alone[0]).abs().max() < 1e-6


def well_learned(model, lesson):
    """A change with which the lesson's target is certain."""
    hparams = hparams_with(steps=60, alpha=1e9, beta=-1e9, gamma=-1e9, lr=0.1, weight_decay=0.0, norm_constraint=None)
    weight = model.value_matrix(LAYER)[1].detach()
    change = torch.zeros(1, *weight.shape, dtype=torch.float64)
    learn_lessons(model, [lesson], change, torch.ones_like(change, dtype=torch.bool), weight, hparams)
    return change[0]


def test_a_loss_that_is_no_number_names_the_edit_and_leaves_the_model_alone(model):
    before = weight_hash(model.model)
    with pytest.raises(UserError, match=r"loss of the edit 'The mother tongue.* is not a number"):
        learned(model, 4, lr=1e300, norm_constraint=None)
    assert weight_hash(model.model) == before
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_a_mean_of_positive_values_leaves_the_others_out():
    values = torch.tensor([[1.0, 3.0, -8.0], [0.0, -1.0, -2.0], [5.0, 0.0, -5.0]])
    assert training._mean_of_positive(values).tolist() == [2.0, 0.0, 5.0]


def test_every_lesson_is_counted_once(model):
    done = []
    lessons = lessons_of(model, 5)
    learn(model, lessons, hparams_with(parallel=2), 0, lambda steps=1: done.append(steps))
    assert done == [2, 2, 1]
