"""Changes of low rank: what they add is what written-out weights would add, and nothing of them stays behind."""

import pytest
import torch
from torch import nn

from methods.mend.lowrank import LowRank, fast_weights

B, T, R, K, D = 3, 5, 4, 6, 7


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Linear(K, D, dtype=torch.float64).requires_grad_(False)


@pytest.fixture
def change():
    torch.manual_seed(1)
    keys, values = torch.randn(B, R, K, dtype=torch.float64), torch.randn(B, R, D, dtype=torch.float64)
    return LowRank(keys.requires_grad_(), values.requires_grad_())


def slow(linear, change, inputs):
    """One row, one token, one term at a time: W x + b + Σ v (k·x)."""
    rows = []
    for b in range(B):
        weight = linear.weight.clone()
        for r in range(R):
            weight = weight + torch.outer(change.values_BRD[b, r], change.keys_BRK[b, r])
        rows.append(torch.stack([weight @ inputs[b, t] + linear.bias for t in range(T)]))
    return torch.stack(rows)


def test_fast_weights_equal_written_out_weights_in_outputs_and_gradients(linear, change):
    inputs = torch.randn(B, T, K, dtype=torch.float64, requires_grad=True)
    towards = torch.randn(B, T, D, dtype=torch.float64)
    asked = [inputs, change.keys_BRK, change.values_BRD]
    expected = slow(linear, change, inputs)
    with fast_weights({linear: change}):
        found = linear(inputs)
    error = (found - expected).abs().max().item()
    gradients = zip(
        torch.autograd.grad((found * towards).sum(), asked),
        torch.autograd.grad((expected * towards).sum(), asked),
        strict=True,
    )
    gradient_error = max((one - other).abs().max().item() for one, other in gradients)
    print(f"low rank against written-out weights: outputs {error:.1e}, gradients {gradient_error:.1e}")
    assert error < 1e-13
    assert gradient_error < 1e-12


def test_the_total_is_the_sum_of_all_outer_products_of_all_rows(change):
    expected = sum(torch.outer(change.values_BRD[b, r], change.keys_BRK[b, r]) for b in range(B) for r in range(R))
    torch.testing.assert_close(change.total(), expected, rtol=1e-13, atol=1e-13)


def test_a_repeated_change_serves_whole_batches_one_after_the_other(linear, change):
    inputs = torch.randn(2 * B, T, K, dtype=torch.float64)
    with fast_weights({linear: change.repeated(2)}):
        together = linear(inputs)
    with fast_weights({linear: change}):
        apart = torch.cat([linear(inputs[:B]), linear(inputs[B:])])
    torch.testing.assert_close(together, apart, rtol=1e-13, atol=1e-13)


def test_half_precision_outputs_stay_in_their_precision(change):
    linear = nn.Linear(K, D, dtype=torch.bfloat16).requires_grad_(False)
    with fast_weights({linear: LowRank(change.keys_BRK.float(), change.values_BRD.float())}):
        assert linear(torch.randn(B, T, K, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_module_is_as_before_even_after_a_failure(linear, change):
    inputs = torch.randn(B, T, K, dtype=torch.float64)
    before = linear(inputs)

    def fail():
        with fast_weights({linear: change}):
            assert not torch.equal(linear(inputs), before)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(linear(inputs), before)
    assert not linear._forward_hooks
