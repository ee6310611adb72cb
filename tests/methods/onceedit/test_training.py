"""The losses of the edit stage, and what precision and checkpointing may change."""

import math

import pytest
import torch

from methods.onceedit.rows import TrainingRow
from methods.onceedit.training import EpochLosses, _checkpointed, losses, measured
from methods.onceedit.weight_entry import append_entry, new_entry
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tiny_onceedit import hparams_with

ROWS = [
    TrainingRow((1, 40, 41, 42, 43), 3, 2, True),
    TrainingRow((1, 50, 51), None, 2, False),
    TrainingRow((1, 60, 61, 62, 63, 64), None, 5, False),
]


def values(**changes):
    return hparams_with(**{"negative_weight": 0.25, **changes}).model_dump()


def gradients(hparams, checkpointing=False):
    """Loss and gradients of all weights on `ROWS`, and how often a block ran."""
    loaded = tiny_model("llama", seed=3)
    model = loaded.model.requires_grad_(True)
    entry, runs = new_entry(model), []
    loaded.block(0).mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    with _checkpointed(loaded, checkpointing):
        loss, _ = losses(model, entry, ROWS, hparams)
        loss.backward()
    assert not any("forward" in vars(part) for part in model.modules())
    return loss.item(), [parameter.grad for parameter in (*model.parameters(), *entry.parameters())], len(runs)


def test_the_loss_is_the_sum_of_both_losses_over_the_right_positions_of_the_finished_model():
    model = tiny_model("llama", seed=3).model
    entry = new_entry(model)
    loss, figures_5 = losses(model, entry, ROWS, values())
    weight_id = append_entry(model, entry)
    generation, right, weight, total = 0.0, 0, 0.0, 0.0
    for row in ROWS:
        logits = model(input_ids=torch.tensor([row.ids])).logits[0]
        for at in range(3, 5) if row.is_edit else ():
            generation -= logits[at - 1].log_softmax(-1)[row.ids[at]].item()
            right += int(logits[at - 1].argmax() == row.ids[at])
        alpha, share = logits[row.weight_at, weight_id].sigmoid(), 1.0 if row.is_edit else 0.25
        weight -= share * (alpha if row.is_edit else 1 - alpha).log().item()
        total += share
    assert loss.item() == pytest.approx(generation / 2 + 0.8 * weight / total, rel=1e-5)
    assert figures_5.tolist() == pytest.approx([generation, right, weight, 2, total], rel=1e-5)


def test_the_focal_loss_weighs_prompts_by_how_unlikely_their_label_is():
    model = tiny_model("llama", seed=3).model
    entry = new_entry(model)
    plain, figures_5 = losses(model, entry, ROWS, values())
    focal, same_5 = losses(model, entry, ROWS, values(focal_gamma=2.0))
    weight_id = append_entry(model, entry)
    expected, weight = 0.0, 0.0
    for row in ROWS:
        alpha = model(input_ids=torch.tensor([row.ids])).logits[0, row.weight_at, weight_id].double().sigmoid().item()
        right, share = (alpha, 1.0) if row.is_edit else (1 - alpha, 0.25)
        expected -= share * (1 - right) ** 2 * math.log(right)
        weight -= share * math.log(right)
    assert (plain - focal).item() == pytest.approx(0.8 * (weight - expected) / 1.5, rel=1e-4)
    assert torch.equal(figures_5, same_5)


def test_a_batch_of_negatives_alone_has_no_generation_loss():
    model = tiny_model("llama", seed=3).model
    loss, figures_5 = losses(model, new_entry(model), ROWS[1:], values(lambda_weight=1.0))
    assert figures_5[[0, 1, 3]].tolist() == [0.0, 0.0, 0.0]
    assert loss.item() == pytest.approx((figures_5[2] / figures_5[4]).item())


def test_checkpointed_gradients_are_the_same_bits_and_every_block_runs_twice():
    loss, plain, runs = gradients(values())
    loss_again, recomputed, runs_again = gradients(values(), checkpointing=True)
    assert (runs, runs_again) == (1, 2)
    assert loss == loss_again
    assert all(left.equal(right) for left, right in zip(plain, recomputed, strict=True) if left is not None)


def test_bf16_gradients_are_fp32_tensors_that_point_the_same_way():
    _, exact, _ = gradients(values())
    _, rough, _ = gradients(values(precision="bf16"))
    pairs = [(left, right) for left, right in zip(exact, rough, strict=True) if left is not None]
    assert {gradient.dtype for _, gradient in pairs} == {torch.float32}
    left, right = (torch.cat([gradient.flatten() for gradient in side]) for side in zip(*pairs, strict=True))
    assert not left.equal(right)
    assert torch.nn.functional.cosine_similarity(left, right, dim=0) > 0.99


def test_measuring_in_chunks_gives_the_means_over_all_rows_in_fp32():
    model = tiny_model("llama", seed=3).model
    entry = new_entry(model)
    whole = EpochLosses.of(losses(model, entry, ROWS, values())[1])
    parts = measured(model, entry, [ROWS[:1]], ROWS[1:], values(batch=1, precision="bf16"))
    assert parts.generation == pytest.approx(whole.generation, rel=1e-5)
    assert parts.weight == pytest.approx(whole.weight, rel=1e-5)
    assert parts.accuracy == whole.accuracy
