"""Matrices that an edit adds to: precise in a half-precision model, untouched in form in others, and back bit for bit."""

import pytest
import torch

from harness.models.weights import weight_hash
from methods.common.closed_form import ValueMatrices
from tests.helpers.tiny_models import ARCHITECTURES, tiny_model


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny_model(request.param)


@pytest.fixture
def half(model):
    model.model.bfloat16()
    return model


def state(model):
    parameters = dict(model.model.named_parameters())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())
    return weight_hash(model.model), {name: id(parameter) for name, parameter in parameters.items()}, hooks


def owner(model, layer):
    return model.module(model.layout.value_matrix, layer)


def shift(model, size):
    weight_VK = model.value_matrix(1)[1]
    return size * torch.randn(weight_VK.T.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_a_shift_is_added_to_the_matrix_of_its_layer_and_to_nothing_else(model):
    before = {name: parameter.clone() for name, parameter in model.model.named_parameters()}
    ValueMatrices(model, [0, 1]).add(1, shift(model, 0.1))
    name, weight_VK = model.value_matrix(1)
    assert torch.equal(weight_VK, before[name] + shift(model, 0.1).T.float())
    changed = [key for key, parameter in model.model.named_parameters() if not torch.equal(parameter, before[key])]
    assert changed == [name]
    assert state(model)[2] == 0


def test_a_shift_smaller_than_bfloat16_can_hold_is_kept(half):
    """The input is cast up and the output down, so only the matrix is more precise than the model."""
    inputs_BK = torch.randn(3, 48, generator=torch.Generator().manual_seed(1)).bfloat16()
    linear, weight_VK = owner(half, 1), half.value_matrix(1)[1].clone()
    tiny_KV = shift(half, 1e-6)
    in_place_VK = weight_VK + tiny_KV.T.bfloat16()
    assert (in_place_VK == weight_VK).float().mean() > 0.99, "in place it would be rounded away"
    bias = 0 if linear.bias is None else linear.bias.float()
    matrices = ValueMatrices(half, [1])
    matrices.add(1, 1000 * tiny_KV)
    matrices.add(1, -999 * tiny_KV)
    expected_VK = weight_VK.float() + tiny_KV.T.float()
    torch.testing.assert_close(half.value_matrix(1)[1], expected_VK, rtol=0, atol=1e-7)
    output_BV = linear(inputs_BK)
    assert output_BV.dtype == torch.bfloat16
    torch.testing.assert_close(output_BV, (inputs_BK.float() @ half.value_matrix(1)[1].T + bias).bfloat16())


def test_a_half_precision_model_says_the_same_before_anything_is_added(half):
    ids_BT = torch.tensor([[1, 5, 9, 12]])
    before = half.model(input_ids=ids_BT).logits
    ValueMatrices(half, [0, 1])
    torch.testing.assert_close(half.model(input_ids=ids_BT).logits, before, rtol=0.02, atol=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_restore_gives_back_objects_and_bits(model, dtype):
    model.model.to(dtype)
    before = state(model)
    matrices = ValueMatrices(model, [0, 1])
    matrices.add(0, shift(model, 0.5))
    assert state(model)[0] != before[0]
    matrices.restore()
    assert state(model) == before
    matrices.restore()
    assert state(model) == before


def test_an_error_gives_back_everything(half):
    before = state(half)
    matrices = ValueMatrices(half, [0, 1])
    with pytest.raises(AttributeError), matrices.restored_on_error():
        matrices.add(0, "no tensor")
    assert state(half) == before


def test_a_layer_that_is_not_there_changes_nothing(half):
    before = state(half)
    with pytest.raises(ValueError, match="not a layer 2"):
        ValueMatrices(half, [0, 2])
    assert state(half) == before


def test_edits_of_a_half_precision_model_go_on_in_float32_and_the_first_gives_all_back(half):
    """As a sequence of edits does."""
    before = state(half)
    first = ValueMatrices(half, [1])
    first.add(1, shift(half, 1e-5))
    once_VK = half.value_matrix(1)[1].clone()
    ValueMatrices(half, [1]).add(1, shift(half, 1e-5))
    assert torch.equal(half.value_matrix(1)[1], once_VK + shift(half, 1e-5).T.float())
    first.restore()
    assert state(half) == before
