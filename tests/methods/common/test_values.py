"""The optimised value: equal to a loop with autograd over the whole model, alone or in a batch; its bounds and its ends."""

import pytest
import torch

from harness.errors import UserError
from methods.common.aligned import enter
from methods.common.closed_form import ValueHparams
from methods.common.rewrites import rewrite
from methods.common.values import optimise, rescaled
from tests.helpers.tiny_models import rounding
from tests.helpers.tiny_rome import PREFIXES, VALUE, adding, countable, easy_requests, requests, watch

LAYER = 0


def hparams(**changes):
    return ValueHparams(**VALUE | changes)


def rewrites_of(model, target_tokens="joint"):
    """Facts as they come, and facts that the model can learn, so that some stop early."""
    facts = [*(requests() if target_tokens == "joint" else countable(model)), *easy_requests(model)]
    return [rewrite(model, request, PREFIXES[:2], target_tokens) for request in facts]


def easy(model):
    return rewrites_of(model)[len(requests()) :]


def scale(model, made):
    return watch(model, LAYER, made.contexts[0].ids, made.contexts[0].pivot)[2].norm()


def fast(model, rewrites, values):
    stream = enter(model, [row for made in rewrites for row in made.rows], LAYER + 1)
    scale_N = torch.stack([scale(model, made) for made in rewrites])
    return optimise(model, rewrites, stream, LAYER + 1, scale_N, values)


def says(model, row, delta_D):
    """Log-probabilities at every place of one unpadded row, the vector added by a hook: T × V."""
    with adding(model, LAYER, row.pivot, delta_D):
        return model.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)


def slow(model, made, values):
    """ROME's loop written out: one request, one row at a time, torch's own Adam."""
    norm = scale(model, made)
    delta_D = torch.zeros(model.model.config.hidden_size, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([delta_D], lr=values.v_lr)
    before_V = says(model, made.essence, delta_D)[made.essence.pivot].detach()
    probable = 0
    for step in range(values.v_steps):
        adam.zero_grad()
        is_probable = True
        nll = torch.zeros((), dtype=torch.float64)
        for row in made.contexts:
            log_probs_TV = says(model, row, delta_D)
            first = len(row.ids) - len(row.labels)
            for at, label in enumerate(row.labels):
                nll = nll - log_probs_TV[first + at, label] / len(row.labels) / len(made.contexts)
                is_probable = is_probable and log_probs_TV[first + at].argmax() == label
        after_V = says(model, made.essence, delta_D)[made.essence.pivot]
        kl = (after_V.exp() * (after_V - before_V)).sum()
        loss = nll + values.kl_weight * kl + values.v_weight_decay * delta_D.norm() / norm**2
        probable += bool(is_probable)
        if loss < values.v_loss_stop or probable == values.v_probable_stop or step == values.v_steps - 1:
            break
        loss.backward()
        adam.step()
        with torch.no_grad():
            if delta_D.norm() > values.v_clamp * norm:
                delta_D.mul_(values.v_clamp * norm / delta_D.norm())
    return delta_D.detach(), loss.item(), nll.item(), step


@pytest.mark.parametrize(
    ("changes", "target_tokens"),
    [
        ({}, "joint"),
        ({}, "alone"),  # other ids; what they are optimised to is the same code
        ({"v_clamp": 0.4}, "joint"),
        ({"v_loss_stop": 1.5, "v_steps": 12, "v_weight_decay": 0.0}, "joint"),
        ({"v_probable_stop": 2, "v_steps": 12, "v_lr": 0.5, "v_clamp": 50.0, "v_loss_stop": 0.0}, "joint"),
    ],
    ids=["joint", "alone", "clamp", "stop", "probable"],
)
def test_the_value_is_that_of_a_loop_over_rows_with_autograd(model, changes, target_tokens):
    values = hparams(**changes)
    rewrites = rewrites_of(model, target_tokens)
    made = fast(model, rewrites, values)
    expected = [slow(model, each, values) for each in rewrites]
    delta_ND = torch.stack([each[0] for each in expected])
    error = ((made.delta_ND - delta_ND).norm() / delta_ND.norm()).item()
    print(f"{model.spec.architecture} {target_tokens} {changes}: value - loop {error:.1e}")
    # GPT-J computes attention scores in float32 whatever the model is
    single = model.spec.architecture == "gptj"
    assert error < (1e-4 if single else 1e-9)
    assert made.steps_N == [each[3] for each in expected]
    tolerance = {"rel": 1e-4 if single else 1e-9}
    if target_tokens == "joint":
        assert made.loss_N == pytest.approx([each[1] for each in expected], **tolerance)
        assert made.nll_N == pytest.approx([each[2] for each in expected], **tolerance)


@pytest.mark.parametrize("changes", [{}, {"v_loss_stop": 1.5, "v_steps": 12, "v_weight_decay": 0.0}], ids=["", "stop"])
def test_requests_in_a_batch_are_optimised_as_if_each_were_alone(model, changes):
    values = hparams(**changes)
    rewrites = rewrites_of(model)
    together = fast(model, rewrites, values)
    alone_ND = torch.cat([fast(model, [each], values).delta_ND for each in rewrites])
    error = ((together.delta_ND - alone_ND).norm() / alone_ND.norm()).item()
    print(f"{model.spec.architecture} {changes}: batch - one by one {error:.1e}")
    assert error < rounding(model.spec.architecture, 1e-9, 1e-4)


def test_some_requests_stop_early_and_the_others_go_on(model):
    made = fast(model, rewrites_of(model), hparams(v_loss_stop=1.5, v_steps=12, v_weight_decay=0.0))
    assert len(set(made.steps_N)) > 1
    assert all(loss < 1.5 or steps == 11 for loss, steps in zip(made.loss_N, made.steps_N, strict=True))


def test_the_optimisation_stops_at_the_nth_loss_at_which_the_target_is_the_most_probable_one(llama):
    free = {"v_steps": 12, "v_lr": 0.5, "v_clamp": 50.0, "v_loss_stop": 0.0}
    once, thrice, never = (fast(llama, easy(llama), hparams(**free, v_probable_stop=n)) for n in (1, 3, None))
    assert never.steps_N == [11] * len(never.steps_N)
    assert all(0 < first < 9 for first in once.steps_N)
    assert all(first + 2 <= third <= 11 for first, third in zip(once.steps_N, thrice.steps_N, strict=True))
    for made, delta_D in zip(easy(llama), once.delta_ND, strict=True):
        for row in made.contexts:
            assert says(llama, row, delta_D)[-1].argmax() == row.labels[-1]


def test_a_rescaled_value_has_the_wanted_norm_and_the_direction_of_the_optimised_one():
    value_D, delta_D = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    changed_D = value_D + rescaled(value_D, delta_D, 2.5)
    torch.testing.assert_close(changed_D, 2.5 * torch.nn.functional.normalize(value_D + delta_D, dim=0).double())


def test_a_value_makes_its_target_certain(model):
    made = fast(model, easy(model), hparams(v_steps=80, v_clamp=50.0, v_weight_decay=0.0, kl_weight=0.0))
    assert max(made.loss_N) < 0.05
    assert 0.95 < made.probability <= 1


def test_a_value_is_never_longer_than_its_clamp(llama):
    rewrites = rewrites_of(llama)
    made = fast(llama, rewrites, hparams(v_clamp=0.25, v_steps=20))
    limit_N = torch.stack([0.25 * scale(llama, each) for each in rewrites])
    torch.testing.assert_close(made.delta_ND.norm(dim=-1), limit_N, rtol=1e-6, atol=0)


def test_what_is_known_already_needs_no_value(llama):
    made = fast(llama, rewrites_of(llama), hparams(v_loss_stop=1e6))
    assert not made.delta_ND.any()
    assert made.steps_N == [0] * len(made.steps_N)


def test_one_loss_is_followed_by_no_step(llama):
    assert not fast(llama, rewrites_of(llama), hparams(v_steps=1)).delta_ND.any()


def test_the_penalty_on_the_essence_keeps_what_follows_the_bare_subject(llama):
    def change(weight):
        rewrites = easy(llama)[:1]
        delta_D = fast(
            llama, rewrites, hparams(kl_weight=weight, v_steps=40, v_weight_decay=0.0, v_clamp=50.0)
        ).delta_ND[0]
        essence = rewrites[0].essence
        with torch.no_grad():
            before_V, after_V = (says(llama, essence, delta)[essence.pivot] for delta in (0 * delta_D, delta_D))
        return (after_V.exp() * (after_V - before_V)).sum()

    assert change(30.0) < 0.2 * change(0.0)


def test_a_loss_that_is_no_number_is_one_line_that_names_the_record(llama):
    rewrites = rewrites_of(llama)
    stream = enter(llama, [row for made in rewrites for row in made.rows], LAYER + 1)
    stream.residual_BTD[-1] = torch.nan
    with pytest.raises(UserError, match=r"^record e3: the loss of its value is not a number at step 0 → "):
        optimise(llama, rewrites, stream, LAYER + 1, torch.ones(8), hparams())


def test_a_batch_leaves_the_model_as_it_was(llama):
    before = {name: parameter.clone() for name, parameter in llama.model.named_parameters()}
    fast(llama, rewrites_of(llama), hparams())
    assert all(torch.equal(parameter, before[name]) for name, parameter in llama.model.named_parameters())
    assert all(parameter.grad is None for parameter in llama.model.parameters())
    assert not any(module._forward_hooks for module in llama.model.modules())
