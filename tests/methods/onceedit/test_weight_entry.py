"""`[WEIGHT]` from its start to a row of the vocabulary, and the convex way to learn it."""

import pytest
import torch
from torch import nn
from torch.autograd.functional import hessian, jacobian

from methods.onceedit.forward import hidden_at
from methods.onceedit.rows import TrainingRow
from methods.onceedit.weight_entry import append_entry, fit_entry, learn_entry, new_entry
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tiny_onceedit import hparams_with


def tied(model):
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


@pytest.mark.parametrize("architecture", ["llama", "gptj", "tied"])
def test_the_entry_starts_as_the_mean_of_all_entries_and_ends_as_the_last_one(architecture):
    model = tied(tiny_model("llama").model) if architecture == "tied" else tiny_model(architecture).model
    old, old_head = model.get_input_embeddings().weight.clone(), model.get_output_embeddings().weight.clone()
    entry = new_entry(model)
    assert torch.allclose(entry.weight[0], old_head.mean(dim=0), atol=1e-6)
    with torch.no_grad():
        entry.weight.mul_(3.0)
    hidden_ND = torch.randn(4, old.shape[1])
    expected_N = entry(hidden_ND).squeeze(-1)
    weight_id = append_entry(model, entry)
    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert weight_id == len(old)
    assert inputs.weight[:-1].equal(old)
    assert head.weight[:-1].equal(old_head)
    assert torch.allclose(head(hidden_ND)[:, weight_id], expected_N, atol=1e-5)
    assert (head.weight.data_ptr() == inputs.weight.data_ptr()) == (architecture == "tied")


def problem(n=40, width=6, is_separable=True):
    generator = torch.Generator().manual_seed(5)
    hidden_ND = torch.randn(n, width, generator=generator)
    is_edit_N = (torch.arange(n) % 4 == 0).float()
    if is_separable:
        hidden_ND[:, 0] += 8 * is_edit_N - 4
    return hidden_ND, is_edit_N, 0.3 + 0.7 * is_edit_N


def entry_of(width, bias=True):
    torch.manual_seed(0)
    return nn.Linear(width, 1, bias=bias)


def bce(entry, hidden_ND, is_edit_N, share_N):
    logit_N = entry(hidden_ND).squeeze(-1)
    loss = nn.functional.binary_cross_entropy_with_logits(logit_N, is_edit_N, weight=share_N, reduction="sum")
    return (loss / share_N.sum()).item()


def test_where_no_entry_is_perfect_the_best_one_is_found():
    hidden_ND, is_edit_N, share_N = problem(is_separable=False)
    entry = entry_of(6)
    reached = fit_entry(entry, hidden_ND, is_edit_N, share_N, stop_bce=0.0)
    values = torch.zeros(7, dtype=torch.float64, requires_grad=True)

    def loss(values):
        logit_N = hidden_ND.double() @ values[:6] + values[6]
        entropy_N = nn.functional.softplus(logit_N) - is_edit_N * logit_N
        return (share_N * entropy_N).sum() / share_N.sum()

    for _ in range(20):
        slope, curvature = jacobian(loss, values), hessian(loss, values)
        values = (values - torch.linalg.solve(curvature, slope)).detach()
    assert reached == pytest.approx(loss(values).item(), abs=1e-7)
    learned = torch.cat([entry.weight[0], entry.bias]).double()
    assert torch.allclose(learned, values, atol=1e-3)


@pytest.mark.parametrize("bias", [True, False])
def test_the_mark_is_reached_by_a_short_way_from_the_start(bias):
    hidden_ND, is_edit_N, share_N = problem()
    moved = []
    for stop_bce in (0.2, 0.02, 0.002):
        entry = entry_of(6, bias)
        start = entry.weight.detach().clone()
        reached = fit_entry(entry, hidden_ND, is_edit_N, share_N, stop_bce)
        assert reached < stop_bce
        assert reached == pytest.approx(bce(entry, hidden_ND, is_edit_N, share_N), rel=1e-3)
        moved.append((entry.weight - start).norm().item())
    assert moved == sorted(moved)
    assert moved[0] < moved[2] / 2


def test_the_same_input_gives_the_same_bits():
    ends = []
    for _ in range(2):
        entry = entry_of(6)
        fit_entry(entry, *problem(), stop_bce=0.01)
        ends.append(entry.weight)
    assert ends[0].equal(ends[1])


def test_learning_reads_last_prompt_positions_and_counts_negatives_as_an_epoch_would():
    model = tiny_model("llama", seed=3).model
    edits = [
        [TrainingRow((1, 40, 41, 42), 3, 2, True)],
        [TrainingRow((1, 45, 46, 47), 2, None, True), TrainingRow((1, 45), None, 1, True)],
    ]
    negatives = [TrainingRow((1, 50 + n, 60 + n), None, 2, False) for n in range(7)]
    hparams = hparams_with(negatives=2, negative_weight=0.5, stop_bce=0.1, batch=3).model_dump()
    entry, expected = new_entry(model), new_entry(model)
    learn_entry(model, entry, edits, negatives, hparams)
    prompts = [(1, 40, 41), (1, 45), *(row.ids for row in negatives)]
    hidden_ND = hidden_at(model, prompts, [(at, len(ids) - 1) for at, ids in enumerate(prompts)])
    share_N = torch.tensor([1.0] * 2 + [0.5 * 4 / 7] * 7)
    fit_entry(expected, hidden_ND, torch.tensor([1.0] * 2 + [0.0] * 7), share_N, stop_bce=0.1)
    assert torch.allclose(entry.weight, expected.weight, atol=1e-5)
