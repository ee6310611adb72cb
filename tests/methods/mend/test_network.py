"""MEND's hypernetwork: its statistics, the identity that it starts as, and what belongs to one matrix alone."""

import pytest
import torch

from methods.common import transforms
from methods.common.factors import GradientFactors
from methods.common.transforms import EditedMatrix, GradientTransform, Residual
from methods.mend import network
from methods.mend.network import Hypernetwork

K, D, N = 5, 4, 6
MATRICES = (EditedMatrix("a", K, D), EditedMatrix("b", D, K), EditedMatrix("c", K, D))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def transform():
    generator = seeded()
    return GradientTransform(K, D, [Residual(K + D, 3, 2, generator) for _ in range(2)]).double()


@pytest.fixture
def hypernetwork():
    made = Hypernetwork(MATRICES, rank=3, edit_lr=0.5, seed=0).double()
    made.observe(some_factors(seed=9, scale=3.0))
    return made


def some_factors(seed=0, scale=1.0):
    generator = seeded(seed)

    def one(matrix):
        inputs = scale * torch.randn(N, matrix.inputs, generator=generator, dtype=torch.float64) + 1
        gradients = scale * torch.randn(N, matrix.outputs, generator=generator, dtype=torch.float64)
        return GradientFactors(
            inputs, gradients, torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 2, 0, 2, 3]), (2, 4)
        )

    return {matrix.name: one(matrix) for matrix in MATRICES}


def learned(module):
    """Every parameter away from where it starts."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=seeded(3), dtype=parameter.dtype))
    return module


def test_statistics_taken_bit_by_bit_are_those_of_all_rows(transform):
    rows = torch.randn(30, K + D, generator=seeded(1), dtype=torch.float64) * 1e-3 + 5
    for part in rows.split([1, 7, 2, 20]):
        transform.observe(part[:, :K], part[:, K:])
    transform.observe(rows[:0, :K], rows[:0, K:])
    assert transform.count == 30
    torch.testing.assert_close(transform.mean_S, rows.mean(0), rtol=1e-13, atol=0)
    spread = (transform.squares_S / (transform.count - 1)).sqrt()
    torch.testing.assert_close(spread, rows.std(0), rtol=1e-10, atol=0)


def test_nothing_is_normalised_before_something_was_seen(transform):
    with pytest.raises(ValueError, match="need observed rows"):
        transform(torch.ones(1, K).double(), torch.ones(1, D).double(), 0)


def test_the_statistics_do_not_learn_from_what_is_only_transformed(hypernetwork):
    before = {name: value.clone() for name, value in hypernetwork.named_buffers()}
    hypernetwork(some_factors())
    assert all(torch.equal(value, before[name]) for name, value in hypernetwork.named_buffers())


def test_at_first_the_update_is_the_normalised_gradient(hypernetwork):
    seen = some_factors()
    updates = hypernetwork(seen)
    for matrix in MATRICES:
        transform = hypernetwork.transforms[matrix.shape]
        spread = (transform.squares_S / (transform.count - 1)).sqrt() + 1e-7
        expected = torch.zeros(matrix.outputs, matrix.inputs, dtype=torch.float64)
        for x, delta in zip(seen[matrix.name].inputs_NK, seen[matrix.name].gradients_ND, strict=True):
            x = (x - transform.mean_S[: matrix.inputs]) / spread[: matrix.inputs]
            delta = (delta - transform.mean_S[matrix.inputs :]) / spread[matrix.inputs :]
            expected += 0.5 * torch.outer(delta, x)
        torch.testing.assert_close(updates[matrix.name].total(), expected, rtol=1e-12, atol=1e-12)


def test_each_row_of_the_batch_has_an_update_of_its_own(hypernetwork):
    seen = some_factors()["b"]
    update = learned(hypernetwork)(some_factors())["b"]
    for row in (0, 1):
        mine = seen.rows_N == row
        alone = GradientFactors(
            seen.inputs_NK[mine], seen.gradients_ND[mine], seen.rows_N[mine] * 0, seen.columns_N[mine], (1, 4)
        )
        expected = hypernetwork({**some_factors(), "b": alone})["b"].total()
        torch.testing.assert_close(update.values_BRD[row].T @ update.keys_BRK[row], expected, rtol=1e-12, atol=1e-12)


def test_a_transform_is_two_residual_layers_written_out(transform):
    learned(transform).observe(torch.randn(9, K).double(), torch.randn(9, D).double())
    x, delta = torch.randn(K).double(), torch.randn(D).double()
    hidden = torch.cat([x, delta])
    hidden = (hidden - transform.mean_S) / ((transform.squares_S / 8).sqrt() + 1e-7)
    for layer in transform.layers:
        mixed = layer.u_SR @ (layer.v_RS @ hidden) + layer.bias_S
        scaled = layer.scale_MS[1] * mixed + layer.shift_MS[1]
        hidden = hidden + torch.where(scaled > 0, scaled, torch.zeros_like(scaled))
    found = torch.cat(transform(x[None], delta[None], 1), dim=-1)[0]
    torch.testing.assert_close(found, hidden, rtol=1e-12, atol=1e-12)


def test_matrices_of_one_shape_share_a_transform_but_not_scale_shift_and_rate(hypernetwork):
    assert list(hypernetwork.transforms) == [f"{K}x{D}", f"{D}x{K}"]
    updates = hypernetwork(some_factors())
    updates["c"].total().sum().backward()
    shared = hypernetwork.transforms[f"{K}x{D}"].layers[0]
    assert shared.shift_MS.grad[0].eq(0).all()
    assert shared.shift_MS.grad[1].ne(0).any()
    assert hypernetwork.edit_lr_M.grad.ne(0).tolist() == [False, False, True]
    assert all(p.grad is None for p in hypernetwork.transforms[f"{D}x{K}"].parameters())


def test_a_layer_that_is_the_identity_can_still_learn(hypernetwork):
    updates = hypernetwork(some_factors())
    sum(update.total().square().sum() for update in updates.values()).backward()
    assert all(layer.u_SR.grad.ne(0).all() for net in hypernetwork.transforms.values() for layer in net.layers)


def test_the_gradient_of_an_edit_rate_is_its_finite_difference(hypernetwork):
    def value():
        return hypernetwork(some_factors())["a"].total().sin().sum()

    value().backward()
    found, step = hypernetwork.edit_lr_M.grad[0].item(), 1e-6
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            hypernetwork.edit_lr_M[0] += sign * step
            ends.append(value().item())
            hypernetwork.edit_lr_M[0] -= sign * step
    assert found == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)


def test_a_seed_decides_the_initial_weights():
    first, again, other = (Hypernetwork(MATRICES, 3, 0.5, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_an_archive_gives_back_every_bit(hypernetwork, tmp_path):
    learned(hypernetwork)
    transforms.save(hypernetwork, {"best_step": 3}, tmp_path)
    again, report = network.load(tmp_path, torch.device("cpu"))
    assert report["best_step"] == 3
    assert again.matrices == MATRICES
    assert not any(parameter.requires_grad for parameter in again.parameters())
    kept, found = hypernetwork.state_dict(), again.state_dict()
    assert kept.keys() == found.keys()
    assert all(torch.equal(kept[name], found[name]) and kept[name].dtype == found[name].dtype for name in kept)
    expected, update = hypernetwork(some_factors())["a"].total(), again(some_factors())["a"].total()
    assert torch.equal(update, expected)
