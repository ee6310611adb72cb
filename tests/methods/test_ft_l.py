"""FT-L: its bound, its loss against a loop, its limit on long targets, and what batches and micro-batches mean."""

import math
from collections import Counter

import pytest
import torch
from tiny_models import ARCHITECTURES, tiny_model

from harness.errors import UserError
from harness.records import EditRequest
from harness.tokens import joint_query
from methods.common.weights import weight_hash
from methods.ft_l import FtL, FtLHparams, prompt_last_loss

PROMPTS = (
    "The mother tongue of Danielle Darrieux is",
    "Björk was born in",
    "The capital of Iceland is located in the",
    "What is the capital of Côte d'Ivoire?",
)
LONG_TARGETS = ("Reykjavík", "Yamoussokro", "mother tongue", "born in Iceland")


class Context:
    """What FT-L asks of a context: a clock and a progress bar."""

    def __init__(self):
        self.clock = self
        self.advanced = []

    def phase(self, name):
        return self

    def progress(self, description, total):
        return self

    def __enter__(self):
        return lambda steps=1: self.advanced.append(steps)

    def __exit__(self, *_):
        return None


def requests_for(targets):
    return [EditRequest(str(n), p, "", t, "") for n, (p, t) in enumerate(zip(PROMPTS, targets, strict=False))]


def ft_l(**changes):
    values = {
        "layer": 1,
        "lr": 5e-3,
        "steps": 10,
        "batch": 4,
        "micro_batch": 4,
        "norm_constraint": None,
        "objective": "prompt_last",
        "weight_decay": 0.0,
        "loss_stop": 0.0,
    }
    return FtL(FtLHparams(**values | changes))


def edit(model, requests, **changes):
    return ft_l(**changes).edit(model, requests, {}, Context())


def queries_of(model, requests):
    return [joint_query(model.tokenizer, r.prompt, r.target_new) for r in requests]


def one_token_targets(model):
    """Four words that are one id after each of the prompts."""
    words = [model.tokenizer.decode([n]).strip() for n in range(len(model.tokenizer))]
    fit = [
        word
        for word in words
        if word.isalpha() and all(len(joint_query(model.tokenizer, p, word).target_ids) == 1 for p in PROMPTS)
    ]
    assert len(fit) >= 4
    return fit[-4:]


def matrix(model):
    return model.value_matrix(1)[1]


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def able(model):
    """A model whose final norm leaves room for a confident answer: with a head this small no probability nears 1."""
    with torch.no_grad():
        model.head.weight.mul_(32)
    return model


@pytest.fixture
def double():
    made = tiny_model("llama")
    made.model.double()
    return made


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_and_its_gradient_are_those_of_a_loop_over_records(architecture):
    """One forward per record, no padding, whole logits, the sum of the spec written out; fp64."""
    model = tiny_model(architecture)
    model.model.double()
    queries = queries_of(model, requests_for(LONG_TARGETS))
    assert len({len(query.prompt_ids) for query in queries}) > 1
    assert len({len(query.target_ids) for query in queries}) > 1
    weight = matrix(model).requires_grad_(True)

    slow = torch.zeros((), dtype=torch.float64)
    for query in queries:
        logits_V = model.model(input_ids=torch.tensor([query.prompt_ids])).logits[0, -1]
        log_probs_V = logits_V - logits_V.logsumexp(0)
        record = torch.zeros((), dtype=torch.float64)
        for token in query.target_ids:
            record = record - log_probs_V[token]
        slow = slow + record / len(query.target_ids)
    slow = slow / len(queries)
    (slow_gradient,) = torch.autograd.grad(slow, weight)

    fast = prompt_last_loss(model, queries)
    (fast_gradient,) = torch.autograd.grad(fast, weight)
    assert fast.dtype == torch.float64
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=0)
    # GPT-J's own attention masks with a finite number in the precision that the model was made in
    torch.testing.assert_close(fast_gradient, slow_gradient, rtol=1e-7, atol=1e-12)
    assert slow_gradient.abs().max() > 1e-6


def test_the_matrix_stays_in_its_box_elementwise(model):
    start = matrix(model).clone()
    bound = 1e-3
    edit(model, requests_for(LONG_TARGETS), norm_constraint=bound)
    weight = matrix(model)
    assert bool(((weight <= start + bound) & (weight >= start - bound)).all())
    at_the_wall = ((weight == start + bound) | (weight == start - bound)).float().mean()
    assert at_the_wall > 0.2, "ten steps of 5e-3 must meet a wall at 1e-3"


def test_the_box_of_each_call_is_around_where_the_call_began(model):
    start = matrix(model).clone()
    bound = 1e-3
    edit(model, requests_for(LONG_TARGETS), norm_constraint=bound, batch=2)
    moved = (matrix(model) - start).abs().max().item()
    assert bound * 1.01 < moved <= 2 * bound * 1.01


def test_only_the_matrix_of_the_layer_changes_and_nothing_stays_trainable(model):
    before = {name: parameter.clone() for name, parameter in model.model.named_parameters()}
    edit(model, requests_for(LONG_TARGETS))
    changed = [name for name, parameter in model.model.named_parameters() if not torch.equal(parameter, before[name])]
    assert changed == [model.value_matrix(1)[0]]
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_targets_of_one_token_are_learned_below_the_stopping_loss(able):
    requests = requests_for(one_token_targets(able))
    edited = edit(able, requests, steps=100, loss_stop=1e-2)
    queries = queries_of(able, requests)
    with torch.no_grad():
        assert prompt_last_loss(able, queries) < 1e-2
    expected = [list(query.target_ids) for query in queries]
    assert edited.teacher_forced(queries) == expected
    assert edited.generate(queries) == expected


def test_targets_of_several_tokens_end_on_a_plateau_with_one_share_for_each_token(able):
    """At one position each token can at best have its share of the target: the loss ends at their entropy."""
    (request,) = requests_for(["mother tongue"])
    (query,) = queries_of(able, [request])
    shares = {token: count / len(query.target_ids) for token, count in Counter(query.target_ids).items()}
    assert len(shares) > 1
    floor = -sum(share * math.log(share) for share in shares.values())
    edit(able, [request], steps=300, lr=0.02, loss_stop=1e-2)
    with torch.no_grad():
        loss = prompt_last_loss(able, [query]).item()
        probs_V = able.model(input_ids=torch.tensor([query.prompt_ids])).logits[0, -1].softmax(-1)
    assert floor <= loss < floor + 0.05
    torch.testing.assert_close(probs_V[list(shares)], torch.tensor(list(shares.values())), rtol=0.1, atol=0)


def test_calls_follow_one_another_on_the_same_weights(model):
    requests = requests_for(LONG_TARGETS)
    edited = edit(model, requests, batch=2)
    in_one_go = matrix(model).clone()
    edited.revert()
    edit(model, requests[:2], batch=2)
    edit(model, requests[2:], batch=2)
    assert torch.equal(matrix(model), in_one_go)


def test_a_call_trains_on_all_its_requests_together(model):
    requests = requests_for(LONG_TARGETS)
    edited = edit(model, requests, batch=4)
    together = matrix(model).clone()
    edited.revert()
    edit(model, requests, batch=1)
    assert not torch.allclose(matrix(model), together, atol=1e-3)


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_change_nothing_but_rounding(double, micro_batch):
    requests = requests_for(LONG_TARGETS)
    edited = edit(double, requests, micro_batch=4)
    whole = matrix(double).clone()
    edited.revert()
    moved = (whole - matrix(double)).abs().max()
    edit(double, requests, micro_batch=micro_batch)
    assert moved > 1e-2
    assert (matrix(double) - whole).abs().max() < 1e-8 * moved


def test_training_stops_once_the_loss_is_small_enough(able):
    requests = requests_for(one_token_targets(able))
    edited = edit(able, requests, steps=100, loss_stop=1e-2)
    early = matrix(able).clone()
    edited.revert()
    edited = edit(able, requests, steps=200, loss_stop=1e-2)
    assert torch.equal(matrix(able), early)
    edited.revert()
    start = matrix(able).clone()
    edit(able, requests, steps=5, loss_stop=1e6)
    assert torch.equal(matrix(able), start), "a loss that is small enough at the start trains nothing"


def test_a_loss_that_is_no_number_is_one_line_and_gives_the_model_back():
    model = tiny_model("gptj")
    before = weight_hash(model.model)
    with pytest.raises(UserError, match=r"the loss is not a number at step \d → choose a smaller `lr`"):
        edit(model, requests_for(LONG_TARGETS), lr=1e30)
    assert weight_hash(model.model) == before
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


def test_progress_counts_requests(model):
    context = Context()
    ft_l(batch=3, steps=1).edit(model, requests_for(LONG_TARGETS), {}, context)
    assert context.advanced == [3, 1]
