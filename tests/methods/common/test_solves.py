"""Closed forms: dual against primal, against the gradient of what they minimise, and where they must refuse."""

import pytest
import torch

from harness.errors import UserError
from methods.common.solves import Factor, moment_ridge, ridge, ridge_gradients
from tests.helpers.tiny_rome import random_moment

SHAPES = [(1, 40, 7), (30, 40, 7), (40, 40, 40), (90, 40, 7)]


def problem(n, k, v, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys_NK = torch.randn(n, k, generator=generator, dtype=torch.float64)
    return keys_NK, torch.randn(n, v, generator=generator, dtype=torch.float64)


def distance(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("shape", [*SHAPES, (1000, 96, 32)])
@pytest.mark.parametrize("weight", [1.0, 15000.0])
def test_memits_update_is_the_primal_one(shape, weight):
    keys_NK, values_NV = problem(*shape)
    moment_KK = random_moment(shape[1])
    system_KK = weight * moment_KK + keys_NK.T @ keys_NK
    primal_KV = torch.linalg.solve(system_KK, keys_NK.T @ values_NV)
    error = distance(moment_ridge(keys_NK, values_NV, Factor.of(moment_KK), weight), primal_KV)
    print(f"MEMIT, N K V = {shape}, weight {weight:g}: dual - primal {error:.1e}")
    assert error < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_memits_update_is_where_its_objective_is_flat(shape):
    keys_NK, values_NV = problem(*shape)
    moment_KK = random_moment(40)
    shift_KV = moment_ridge(keys_NK, values_NV, Factor.of(moment_KK), 5.0).requires_grad_()
    kept = torch.trace(shift_KV.T @ moment_KK @ shift_KV)
    objective = ((keys_NK @ shift_KV - values_NV) ** 2).sum() + 5.0 * kept
    (gradient_KV,) = torch.autograd.grad(objective, shift_KV)
    assert gradient_KV.abs().max() < 1e-11 * objective


def test_a_light_moment_gives_every_key_its_value_and_a_heavy_one_changes_nothing():
    keys_NK, values_NV = problem(20, 40, 7)
    moment = Factor.of(random_moment(40))
    light_KV, heavy_KV = (moment_ridge(keys_NK, values_NV, moment, weight) for weight in (1e-9, 1e9))
    torch.testing.assert_close(keys_NK @ light_KV, values_NV, rtol=1e-6, atol=1e-6)
    assert (keys_NK @ heavy_KV).abs().max() < 1e-6


def test_float32_input_is_solved_in_float64():
    keys_NK, values_NV = (tensor.float() for tensor in problem(30, 40, 7))
    moment = Factor.of(random_moment(40))
    shift_KV = moment_ridge(keys_NK, values_NV, moment, 1.0)
    assert shift_KV.dtype == torch.float64
    assert torch.equal(shift_KV, moment_ridge(keys_NK.double(), values_NV.double(), moment, 1.0))


def test_a_factor_divides_and_whitens():
    moment_KK, (rows_NK, _) = random_moment(40), problem(5, 40, 1)
    factor = Factor.of(moment_KK)
    torch.testing.assert_close(factor.divide(rows_NK) @ moment_KK, rows_NK, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(factor.unwhiten(factor.whiten(rows_NK)), factor.divide(rows_NK))
    white_NK = factor.whiten(rows_NK)
    torch.testing.assert_close(white_NK @ white_NK.T, rows_NK @ factor.divide(rows_NK).T)


def test_the_ridge_of_a_factor_is_a_share_of_the_mean_diagonal():
    moment_KK = random_moment(40)
    lower_KK = Factor.of(moment_KK, ridge=0.1).lower_KK
    expected_KK = moment_KK + 0.1 * moment_KK.diagonal().mean() * torch.eye(40, dtype=torch.float64)
    torch.testing.assert_close(lower_KK @ lower_KK.T, expected_KK)


def test_a_moment_that_leaves_directions_unseen_is_refused_and_a_ridge_fixes_it():
    keys_NK, values_NV = problem(10, 40, 3)
    moment_KK = keys_NK.T @ keys_NK - 1e-9 * torch.eye(40, dtype=torch.float64)
    with pytest.raises(UserError, match=r"not positive definite.* → more moments_tokens, or moments_ridge"):
        Factor.of(moment_KK)
    assert moment_ridge(keys_NK, values_NV, Factor.of(moment_KK, ridge=1e-6), 1.0).isfinite().all()


@pytest.mark.parametrize("n", [5, 90])
def test_a_weight_of_nothing_is_refused(n):
    with pytest.raises(ValueError, match="without a unique solution"):
        moment_ridge(*problem(n, 40, 3), Factor.of(random_moment(40)), 0.0)


@pytest.mark.parametrize("shape", [*SHAPES, (1000, 96, 32)])
def test_ridge_regression_is_the_primal_one(shape):
    keys_NK, values_NV = problem(*shape)
    system_KK = keys_NK.T @ keys_NK + 2.0 * torch.eye(shape[1], dtype=torch.float64)
    error = distance(ridge(keys_NK, values_NV, 2.0), torch.linalg.solve(system_KK, keys_NK.T @ values_NV))
    print(f"ridge, N K V = {shape}: dual - primal {error:.1e}")
    assert error < 1e-12


@pytest.mark.parametrize("shape", [*SHAPES, (200, 96, 32)])
def test_gradients_through_ridge_regression_are_those_of_autograd(shape):
    keys_NK, values_NV = problem(*shape)
    outer_KV = problem(shape[1], 3, shape[2], seed=1)[1]
    values_NV.requires_grad_()
    weight = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    system_KK = keys_NK.T @ keys_NK + weight * torch.eye(shape[1], dtype=torch.float64)
    shift_KV = torch.linalg.solve(system_KK, keys_NK.T @ values_NV)
    expected = torch.autograd.grad((shift_KV * outer_KV).sum(), [values_NV, weight])
    found = ridge_gradients(keys_NK, values_NV.detach(), 2.0, outer_KV)
    errors = [distance(*pair) for pair in zip(found, expected, strict=True)]
    print(f"gradient through ridge, N K V = {shape}: {max(errors):.1e}")
    assert max(errors) < 1e-10
