"""Meta-training: gradients equal autograd through the written-out solve, modes differ as specified, and signs are checked."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call

from harness.errors import UserError
from harness.models.catalogue import ModelRef
from methods.common.aggregation.network import load
from methods.common.aggregation.training import Batch, Trainer, build, require_descent, train
from methods.common.prediction import examples
from methods.emsedit import EmsEdit
from tests.helpers.tiny_aggregation import learned, primal_shift, slow_pairs
from tests.helpers.tiny_mend import REF, REQUESTS, TRAIN, TinyContext, double
from tests.helpers.tiny_models import tiny_model


def trainer_of(architecture="llama", **changes):
    """With networks that have learned something, in float64."""
    torch.set_num_threads(1)
    model = double(tiny_model(architecture))
    trainer = Trainer(model, learned(architecture, **changes), 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for network in trainer.networks:
            network.double()
            for parameter in network.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator).to(parameter).abs())
    return model, trainer


def batch_of(trainer, made):
    rows = ([e.edit for e in made], [e.outer[0] for e in made], [e.locality[0] for e in made])
    return Batch(*map(trainer.rounds.prepare, rows))


def slow_loss(model, trainer, network, gathered, made):
    """The outer loss by definition: the primal solve, weights written out, one row at a time; differentiable."""
    hparams = trainer.hparams
    weights, norm = {}, 0.0
    for index, matrix in enumerate(trainer.rounds.matrices):
        seen = gathered[matrix.name]
        wanted_ND = network.changes(index, seen.keys_NK, seen.gradients_ND)
        shift_KD = primal_shift(seen.keys_NK, wanted_ND, network.log_ridge_M[index].exp())
        weights[matrix.name] = model.model.get_parameter(matrix.name) + shift_KD.T
        norm = norm + shift_KD.square().sum()

    def log_probs(row, changed):
        logits = functional_call(model.model, changed, (), {"input_ids": torch.tensor([row.ids])}).logits[0]
        return logits[list(row.places)].log_softmax(-1)

    loss = hparams.norm_weight * norm
    for example in made:
        right = log_probs(example.outer[0], weights)
        loss = loss - sum(right[n, label] for n, label in enumerate(example.outer[0].labels)) / len(right)
        before, after = (log_probs(example.locality[0], changed) for changed in ({}, weights))
        loss = loss + hparams.loc_weight * (before.exp() * (before - after)).sum(-1).mean()
    return loss


@pytest.mark.parametrize(("architecture", "tolerance"), [("llama", 1e-10), ("gptj", 1e-7)])
def test_a_meta_gradient_is_autograd_through_the_solve(architecture, tolerance):
    """GPT-J's attention is computed in float32, in other batches here than there."""
    model, trainer = trainer_of(architecture)
    made, (network,) = examples(model, TRAIN, "corrected"), trainer.networks
    batch = batch_of(trainer, made)
    gathered = trainer.rounds.gather(batch.edits, network)
    loss, outer = trainer.outer(batch, trainer.rounds.shifts(gathered, network))
    trainer.backward(network, gathered, outer)
    expected = slow_loss(model, trainer, network, gathered, made)
    assert loss == pytest.approx(expected.item() / len(made), rel=tolerance)
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(expected, list(parameters.values()))
    errors = [
        ((parameter.grad - gradient).norm() / gradient.norm()).item()
        for parameter, gradient in zip(parameters.values(), gradients, strict=True)
        if gradient.norm() > 1e-12
    ]
    print(f"{architecture}: meta-gradient of {len(errors)} parameters - autograd, relative {max(errors):.1e}")
    assert len(errors) >= 10
    assert max(errors) < tolerance


def test_in_batch_mode_every_round_is_an_optimiser_step_from_the_unedited_weights():
    model, trainer = trainer_of(rounds=2)
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    seen, gather = [], trainer.rounds.gather
    trainer.rounds.gather = lambda batch, network: seen.append(gather(batch, network)) or seen[-1]
    rates = trainer.networks[0].edit_lr_M.clone()
    losses = list(trainer.learn([batch_of(trainer, examples(model, TRAIN, "corrected"))]))
    assert len(losses) == len(seen) == 2
    for name, first in seen[0].items():
        assert torch.equal(first.gradients_ND, seen[1][name].gradients_ND)
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    assert not torch.equal(trainer.networks[0].edit_lr_M, rates)


def slow_sequence(model, hparams, networks, batches):
    """EMSEdit §7, sequential mode, written out: the weights change for good, and one gradient of the loss serves all rounds.

    Adds the gradients to the networks' parameters; returns the norms before each clipping.
    """
    modules, rows, norms = hparams.modules(model), {}, []
    start = {name: module.weight.clone() for name, module in modules.items()}
    parameters = [parameter for network in networks for parameter in network.parameters()]
    for made in batches:
        rounds = []
        for number, network in enumerate(networks):
            edits = [(example.edit.ids, example.edit.places, example.edit.labels) for example in made]
            pairs = slow_pairs(model, modules, edits)
            for matrix in network.matrices:
                rows.setdefault((number, matrix.shape), []).append(torch.cat(pairs[matrix.name], 1))
            for shape, transform in network.transforms.items():
                seen = torch.cat(rows[number, shape])
                transform.count.fill_(len(seen))
                transform.mean_S.copy_(seen.mean(0))
                transform.squares_S.copy_((seen - seen.mean(0)).square().sum(0))
            shifts = {}
            for index, matrix in enumerate(network.matrices):
                keys, gradients = pairs[matrix.name]
                wanted = network.changes(index, keys, gradients)
                shifts[matrix.name] = primal_shift(keys, wanted, network.log_ridge_M[index].exp())
                modules[matrix.name].weight.data += shifts[matrix.name].detach().T
            rounds.append(shifts)
        weights = {name: module.weight.detach().requires_grad_() for name, module in modules.items()}
        loss = hparams.norm_weight * sum((weights[name] - start[name]).square().sum() for name in modules)
        for row in (example.outer[0] for example in made):
            logits = functional_call(model.model, weights, (), {"input_ids": torch.tensor([row.ids])}).logits[0]
            right = logits[list(row.places)].log_softmax(-1)
            loss = loss - sum(right[n, label] for n, label in enumerate(row.labels)) / len(right)
        pull = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        for shifts in rounds:
            sum((pull[name].T * shift).sum() for name, shift in shifts.items()).backward()
            norms.append(torch.nn.utils.clip_grad_norm_(parameters, hparams.clip).item())
    return norms


def test_a_sequence_is_trained_as_a_loop_over_edits_and_rounds():
    """Shifts and gradients add up over rounds and batches, gradients are clipped after each round, and one step follows."""
    model, trainer = trainer_of(mode="sequence", rounds=2, loc_weight=0.0, clip=0.5)
    assert [network.rank for network in trainer.networks] == [4, 2]
    made, networks, found = examples(model, TRAIN, "corrected"), deepcopy(trainer.networks), []
    step = trainer._step
    trainer._step = lambda: found.append([parameter.grad.clone() for parameter in trainer._parameters]) or step()
    (loss,) = trainer.learn([batch_of(trainer, made[:2]), batch_of(trainer, made[2:])])
    assert math.isfinite(loss)
    norms = slow_sequence(model, trainer.hparams, networks, [made[:2], made[2:]])
    assert min(norms) > trainer.hparams.clip
    (found,), expected = found, [parameter.grad for network in networks for parameter in network.parameters()]
    error = max(
        ((one - other).norm() / other.norm()).item()
        for one, other in zip(found, expected, strict=True)
        if other.norm() > 1e-12
    )
    print(f"sequence of {len(norms)} rounds: gradients of {len(expected)} parameters - loop, relative {error:.1e}")
    assert error < 1e-10
    assert all(network.edit_lr_M.grad is None for network in trainer.networks), "after the step"


@pytest.mark.parametrize(
    ("records", "given", "batches"),
    [(64, None, (1, 64)), (1000, None, (1, 1000)), (1500, None, (2, 750)), (4097, None, (5, 819)), (64, 3, (3, 64))],
)
def test_a_pass_without_a_number_of_batches_sees_every_record_once(records, given, batches):
    assert learned(train_batch=1024, train_batches=given).batches(records) == batches


def test_one_pass_draws_no_record_twice():
    model, trainer = trainer_of(train_batch=3, train_batches=None, steps=2)
    made, passes = examples(model, TRAIN, "corrected"), []

    def learn(batches):
        passes.append(sorted(row.ids for batch in batches for part in batch.edits for row in part.rows))
        return [0.0]

    trainer.learn = learn
    train(trainer, made, 0, TinyContext(model))
    assert passes == [sorted(example.edit.ids for example in made)] * 2


def test_no_record_with_a_rephrase_is_told_when_a_suite_is_planned():
    with pytest.raises(UserError, match=r"emsedit learns from .* but 0 of the 4 of 'tiny' have both"):
        EmsEdit(learned()).artifacts(ModelRef("tinyllama-1.1b", "pretrained"), replace(REF, examples=0), 0)


def test_training_makes_the_outer_loss_smaller():
    torch.set_num_threads(1)
    model = tiny_model("llama")
    trainer = Trainer(model, learned(steps=15, lr=3e-3, norm_weight=0.0, train_batch=4), 0)
    losses = train(trainer, examples(model, TRAIN, "corrected"), 0, TinyContext(model))
    assert len(losses) == 30
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("weights", "smaller"),
    [
        ({"norm_weight": 0.5, "loc_weight": 0.7}, ", or a smaller `norm_weight` or `loc_weight`"),
        ({"norm_weight": 0.0, "loc_weight": 1.0}, ", or a smaller `loc_weight`"),
        ({"norm_weight": 0.0, "loc_weight": 0.0}, ""),
    ],
)
def test_a_rate_that_changed_its_sign_is_refused(weights, smaller):
    _, trainer = trainer_of(edit_lr=0.02, **weights)
    require_descent(trainer.networks, trainer.hparams, 10)
    with torch.no_grad():
        trainer.networks[0].edit_lr_M[1] = -1e-6
    with pytest.raises(
        UserError, match=r"edit rate of .*down_proj.weight is -1.0e-06: edits would increase their loss"
    ) as caught:
        require_descent(trainer.networks, trainer.hparams, 10)
    assert caught.value.fix == f"lr: 0.001, too small to change its sign in this training{smaller}"


@pytest.mark.parametrize("weights", [{"norm_weight": 1e6, "loc_weight": 0.0}, {"norm_weight": 0.0, "loc_weight": 1e6}])
def test_a_term_that_weighs_too_much_turns_the_edit_around_and_is_caught_with_a_remedy(weights, tmp_path):
    """Its gradient outweighs that of the target: each Adam step lowers the rate by as much as `lr`."""
    torch.set_num_threads(1)
    model, context = tiny_model("llama"), TinyContext(tiny_model("llama"))
    options = {**weights, "edit_lr": 1e-3, "steps": 2}
    spec = EmsEdit(learned(**options, lr=1e-3)).artifacts(model.ref, REF, 0)["hypernetwork"]
    with pytest.raises(UserError, match="edits would increase their loss") as caught:
        build(spec, context, tmp_path)
    remedy = float(caught.value.fix.partition(",")[0].removeprefix("lr: "))
    build(EmsEdit(learned(**options, lr=remedy)).artifacts(model.ref, REF, 0)["hypernetwork"], context, tmp_path)


def test_a_trained_hypernetwork_is_read_back_bit_for_bit(tmp_path):
    torch.set_num_threads(1)
    model = tiny_model("llama")
    method = EmsEdit(learned(mode="sequence", loc_weight=0.0, train_batches=2))
    spec = method.artifacts(model.ref, REF, 0)["hypernetwork"]
    build(spec, TinyContext(model), tmp_path)
    networks, report = load(tmp_path, 2, model.device)
    assert len(networks) == 2
    assert report["records"] == len(TRAIN)
    assert len(report["losses"]) == 2
    (tmp_path / "again").mkdir()
    build(spec, TinyContext(model), tmp_path / "again")
    for network, again in zip(networks, load(tmp_path / "again", 2, model.device)[0], strict=True):
        for name, value in network.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("mode", ["batch", "sequence"])
def test_a_network_that_was_trained_for_batches_says_so_in_a_sequence(mode, tmp_path):
    torch.set_num_threads(1)
    model = tiny_model("llama")
    method, context = EmsEdit(learned(mode=mode, train_batches=2)), TinyContext(model)
    spec = method.artifacts(model.ref, REF, 0)["hypernetwork"]
    build(spec, context, tmp_path)
    first = method.edit(model, REQUESTS[:2], {"hypernetwork": tmp_path}, context)
    second = method.extend(model, first.state(), REQUESTS[2:], {"hypernetwork": tmp_path}, context)
    assert not first.remarks()
    assert bool(second.remarks()) == (mode == "batch")
    second.revert()
    first.revert()
