"""Fusion and the three decoders, against worked examples and autograd in fp64."""

import pytest
import torch

from methods.onceedit.decoders import (
    AnchorTokens,
    ColumnDecoder,
    OwnerDecoder,
    SearchDecoder,
    learning_rate,
    make_decoder,
)
from methods.onceedit.fusion import Fused, Projection
from methods.onceedit.matrix import TransferMatrix
from methods.onceedit.relative import RelativeState

DOUBLE = torch.float64


def autograd_search(matrix_VA, target_BA, start_BV, steps, lr):
    """DeePEn's search as one writes it with torch's own optimiser, schedule and loss, one row at a time."""
    ends = []
    for target_A, start_V in zip(target_BA, start_BV, strict=True):
        z_V = start_V.clone().requires_grad_(True)
        optimiser = torch.optim.AdamW([z_V], lr=lr, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=10, eta_min=lr / 4)
        for _ in range(steps):
            optimiser.zero_grad()
            log_q_A = (z_V.softmax(dim=-1) @ matrix_VA).log()
            torch.nn.functional.kl_div(log_q_A, target_A, reduction="none").mean().backward()
            optimiser.step()
            schedule.step()
        ends.append(z_V.detach())
    return torch.stack(ends)


def random_state(rule="plain", tokens=40, anchors=12, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    embeddings_VD = torch.randn(tokens, width, generator=generator, dtype=DOUBLE)
    return RelativeState.build(embeddings_VD, torch.randperm(tokens, generator=generator)[:anchors].tolist(), rule)


def fuse(probs_l, probs_s, alpha, llm, plugin):
    return Fused(Projection(llm), Projection(plugin), probs_l, probs_s, alpha)


def around(state, anchors):
    """A mixture whose most probable anchors are the given ones: point masses on the tokens that own them."""
    probs = torch.eye(state.n_tokens, dtype=DOUBLE)[state.owner_A[torch.tensor(anchors)]]
    return fuse(probs, probs, torch.full((len(anchors),), 0.5, dtype=DOUBLE), state, state)


@pytest.fixture
def identity():
    return RelativeState.build(torch.eye(3, dtype=DOUBLE), [0, 1, 2], "plain")


@pytest.mark.parametrize(("steps", "size"), [(1, 0.15), (5, 0.6705)])
def test_search_of_the_worked_example(identity, steps, size):
    expected_BV, start_BV = torch.tensor([[-size, -size, size]], dtype=DOUBLE), torch.zeros(1, 3, dtype=DOUBLE)
    by_column_BV = ColumnDecoder(steps, 0.15).search(identity, torch.tensor([2]), start_BV)
    whole_BV = SearchDecoder(steps, 0.15).search(TransferMatrix.of(identity), torch.eye(3, dtype=DOUBLE)[2:], start_BV)
    assert torch.allclose(by_column_BV, expected_BV, atol=5e-5)
    assert torch.allclose(whole_BV, expected_BV, atol=5e-5)


def test_one_step_of_gradient_descent_of_the_worked_example(identity):
    """SGD, lr 3: the gradient itself, before any optimiser."""
    p_V, r_V = torch.full((3,), 1 / 3, dtype=DOUBLE), identity.columns(torch.tensor([2]))[0]
    z_V = 3 * p_V * (r_V - p_V @ r_V) / (p_V @ r_V * 3)
    assert torch.allclose(z_V, torch.tensor([-0.1214, -0.1214, 0.2428], dtype=DOUBLE), atol=5e-5)


@pytest.mark.parametrize("init", ["zero", "llm"])
@pytest.mark.parametrize("rule", ["plain", "deepen"])
def test_column_search_equals_autograd(init, rule):
    state = random_state(rule)
    anchors_B = torch.tensor([0, 5, 11])
    logits_BV = torch.randn(3, 40, dtype=DOUBLE) * 3
    target_BA = torch.eye(12, dtype=DOUBLE)[anchors_B]
    start_BV = torch.zeros_like(logits_BV) if init == "zero" else logits_BV
    expected_BV = autograd_search(state.rows(0, 40), target_BA, start_BV, 5, 0.15)
    found_BV = ColumnDecoder(5, 0.15, init).search(state, anchors_B, logits_BV)
    assert (found_BV - expected_BV).abs().max() < 1e-10


@pytest.mark.parametrize("limits", [{}, {"materialise_below_bytes": 0, "tile_bytes": 7 * 12 * 8}])
@pytest.mark.parametrize("init", ["zero", "llm"])
@pytest.mark.parametrize("target", ["onehot", "soft"])
def test_full_search_equals_autograd(init, target, limits):
    state = random_state()
    fused_BA = torch.randn(3, 12, dtype=DOUBLE).mul(2).softmax(dim=-1)
    target_BA = fused_BA if target == "soft" else torch.eye(12, dtype=DOUBLE)[fused_BA.argmax(dim=-1)]
    logits_BV = torch.randn(3, 40, dtype=DOUBLE) * 3
    start_BV = torch.zeros_like(logits_BV) if init == "zero" else logits_BV
    expected_BV = autograd_search(state.rows(0, 40), target_BA, start_BV, 5, 0.15)
    found_BV = SearchDecoder(5, 0.15, init, target).search(TransferMatrix.of(state, **limits), fused_BA, logits_BV)
    assert (found_BV - expected_BV).abs().max() < 1e-10


def test_a_search_leaves_the_models_logits_alone():
    state, logits_BV = random_state(), torch.randn(1, 40, dtype=DOUBLE)
    kept_BV = logits_BV.clone()
    ColumnDecoder(init="llm").search(state, torch.tensor([0]), logits_BV)
    SearchDecoder(init="llm").search(TransferMatrix.of(state), torch.eye(12, dtype=DOUBLE)[:1], logits_BV)
    assert logits_BV.equal(kept_BV)


@pytest.mark.parametrize("rule", ["plain", "deepen"])
def test_all_decoders_agree_at_the_rates_in_use(rule):
    state = random_state(rule, tokens=200, anchors=60, seed=3)
    fused, logits_BV = around(state, list(range(60))), torch.zeros(60, 200, dtype=DOUBLE)
    owner = OwnerDecoder().decode(fused, logits_BV)
    for decoder in (ColumnDecoder(lr=0.15), SearchDecoder(lr=0.15)):
        decoded = decoder.decode(fused, logits_BV)
        assert decoded.anchors_B.equal(owner.anchors_B)
        assert decoded.tokens_B.equal(owner.tokens_B)


def test_owner_and_column_may_differ_at_a_high_rate():
    """A known limit of the short cut, not of the code: no test or caller may take the two for equal there."""
    differing = 0
    for seed in range(20):
        state = random_state("plain", tokens=200, anchors=60, seed=seed)
        fused, logits_BV = around(state, list(range(60))), torch.zeros(60, 200, dtype=DOUBLE)
        fast_B = OwnerDecoder().decode(fused, logits_BV).tokens_B
        differing += int((ColumnDecoder(lr=0.5).decode(fused, logits_BV).tokens_B != fast_B).sum())
    assert differing > 0


def test_five_steps_move_two_logits_apart_by_at_most_1349():
    assert 2 * sum(learning_rate(0.15, step) for step in range(5)) == pytest.approx(1.349, abs=5e-4)


@pytest.mark.parametrize(("gap", "flips"), [(1.40, False), (1.30, True)])
def test_a_start_from_the_models_logits_keeps_a_large_gap(gap, flips):
    """Two tokens, the target owned by the second, the model in favour of the first."""
    state = RelativeState.build(torch.eye(2, dtype=DOUBLE), [0, 1], "plain")
    logits_BV = torch.tensor([[gap / 2, -gap / 2]], dtype=DOUBLE)
    z_BV = ColumnDecoder(steps=5, lr=0.15, init="llm").search(state, torch.tensor([1]), logits_BV)
    assert (z_BV.argmax(dim=-1).item() == 1) == flips


def test_between_point_masses_the_larger_weighted_margin_wins():
    llm, plugin = random_state(seed=1), random_state(seed=2)
    for trial in range(50):
        generator = torch.Generator().manual_seed(trial)
        x, y = torch.randperm(12, generator=generator)[:2].tolist()
        s, l = int(plugin.anchor_ids_A[x]), int(llm.anchor_ids_A[y])  # noqa: E741
        d_s = (plugin.rows(s, s + 1)[0, x] - plugin.rows(s, s + 1)[0, y]).item()
        d_l = (llm.rows(l, l + 1)[0, y] - llm.rows(l, l + 1)[0, x]).item()
        threshold = d_l / (d_s + d_l)
        point_l, point_s = torch.eye(40, dtype=DOUBLE)[l : l + 1], torch.eye(40, dtype=DOUBLE)[s : s + 1]
        for alpha in (threshold - 1e-6, threshold + 1e-6):
            fused_A = fuse(point_l, point_s, torch.tensor([alpha], dtype=DOUBLE), llm, plugin).probs_BA[0]
            assert (fused_A[x] > fused_A[y]).item() == (alpha > threshold)


def test_a_confident_start_gives_no_nan_where_the_column_underflows():
    """100 / ‖c‖ drives most of a `deepen` column below the smallest fp32 number."""
    state = RelativeState.build(torch.eye(6), [0, 1, 2, 3, 4, 5], "deepen")
    logits_BV = torch.zeros(1, 6)
    logits_BV[0, 0] = 400.0
    z_BV = ColumnDecoder(init="llm").search(state, torch.tensor([1]), logits_BV)
    assert z_BV.isfinite().all()
    assert SearchDecoder(init="llm").search(TransferMatrix.of(state), torch.eye(6)[1:2], logits_BV).isfinite().all()


def test_a_search_from_zero_is_made_once_per_anchor():
    state, searched = random_state("plain", tokens=200, anchors=60, seed=3), []

    class Counting(ColumnDecoder):
        def search(self, state, anchors_B, logits_l_BV):
            searched.extend(anchors_B.tolist())
            return super().search(state, anchors_B, logits_l_BV)

    decoder = AnchorTokens(Counting(lr=0.5), state)
    for anchors in ([3, 1, 4], [1, 5, 9, 4], [5, 3]):
        fused, logits_BV = around(state, anchors), torch.randn(len(anchors), 200, dtype=DOUBLE)
        found, expected = decoder.decode(fused, logits_BV), ColumnDecoder(lr=0.5).decode(fused, logits_BV)
        assert found.tokens_B.equal(expected.tokens_B)
        torch.testing.assert_close(found.lead_B, expected.lead_B)
    assert searched == [3, 1, 4, 5, 9]
    torch.testing.assert_close(found.logits(), expected.logits())
    with pytest.raises(ValueError, match="depends on them"):
        AnchorTokens(ColumnDecoder(init="llm"), state)


@pytest.mark.parametrize(
    ("name", "init", "kind"),
    [
        ("owner", "zero", OwnerDecoder),
        ("column", "zero", AnchorTokens),
        ("column", "llm", ColumnDecoder),
        ("search", "zero", SearchDecoder),
    ],
)
def test_each_decoder_is_made_by_its_name(name, init, kind):
    state = random_state("plain")
    assert isinstance(make_decoder(name, state, steps=5, lr=0.15, init=init, target="onehot"), kind)
