"""Low-rank updates: their gradients, their reach, and what is left of them."""

import pytest
import torch
from torch import nn

from harness.errors import UserError
from methods.common.lora import SCALE, block_linears, low_rank
from tests.helpers.tiny_models import tiny_model

IDS = torch.tensor([[1, 40, 41, 42], [1, 50, 51, 52]])


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("architecture", ["llama", "gptj"])
def test_merged_weights_say_what_the_updates_said(architecture):
    loaded = tiny_model(architecture)
    before = loaded.model(input_ids=IDS).logits
    with low_rank(block_linears(loaded), 3, generator()) as updates:
        assert loaded.model(input_ids=IDS).logits.equal(before), "an update starts as nothing"
        with torch.no_grad():
            for number, update in enumerate(updates):
                update.copy_(torch.randn(update.shape, generator=torch.Generator().manual_seed(number)) / 4)
        beside = loaded.model(input_ids=IDS).logits
    assert not torch.allclose(beside, before, atol=0.1)
    assert torch.allclose(loaded.model(input_ids=IDS).logits, beside, rtol=1e-4, atol=1e-4)
    assert not any(part._forward_hooks for part in loaded.model.modules())


def test_gradients_are_those_of_the_merged_weight_by_the_chain_rule():
    torch.manual_seed(0)
    linear = nn.Linear(5, 4).double().requires_grad_(False)
    inputs_NI, outputs_NO = torch.randn(7, 5).double(), torch.randn(7, 4).double()
    with low_rank([linear], 2, generator()) as (a_RI, b_OR):
        b_OR.data.normal_()
        (linear(inputs_NI) - outputs_NO).square().sum().backward()
        merged = (linear.weight + SCALE * b_OR @ a_RI).detach().requires_grad_(True)
    (nn.functional.linear(inputs_NI, merged, linear.bias) - outputs_NO).square().sum().backward()
    assert torch.allclose(b_OR.grad, SCALE * merged.grad @ a_RI.T)
    assert torch.allclose(a_RI.grad, SCALE * b_OR.T @ merged.grad)
    assert linear.weight.grad is None


def test_updates_of_full_rank_reach_what_training_of_all_weights_reaches():
    torch.manual_seed(0)
    linear = nn.Linear(5, 4, bias=False).double().requires_grad_(False)
    inputs_NI, wanted_OI = torch.randn(20, 5).double(), torch.randn(4, 5).double()
    with low_rank([linear], 4, generator()) as updates:
        adam = torch.optim.Adam(updates, lr=0.05)
        for _ in range(600):
            adam.zero_grad()
            (linear(inputs_NI) - inputs_NI @ wanted_OI.T).square().mean().backward()
            adam.step()
    assert torch.allclose(linear.weight, wanted_OI, atol=1e-3)


def test_a_failure_leaves_the_layers_as_they_were():
    loaded = tiny_model("llama")
    before = {name: parameter.clone() for name, parameter in loaded.model.named_parameters()}

    def fail_inside():
        with low_rank(block_linears(loaded), 2, generator()) as updates:
            updates[1].data.fill_(1.0)
            raise RuntimeError("in the body")

    with pytest.raises(RuntimeError, match="in the body"):
        fail_inside()
    assert all(parameter.equal(before[name]) for name, parameter in loaded.model.named_parameters())
    assert not any(part._forward_hooks for part in loaded.model.modules())
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_updates_of_another_scale_are_merged_at_that_scale():
    linear = nn.Linear(5, 4).double().requires_grad_(False)
    before, inputs_NI = linear.weight.clone(), torch.randn(7, 5, generator=generator()).double()
    with low_rank([linear], 2, generator(), scale=4.0) as (a_RI, b_OR):
        b_OR.data.fill_(0.3)
        beside = linear(inputs_NI)
    assert torch.allclose(linear.weight, before + 4.0 * b_OR @ a_RI)
    assert torch.allclose(linear(inputs_NI), beside)


def test_some_layers_can_be_named_and_an_unknown_name_is_told():
    loaded = tiny_model("llama")
    attention = [loaded.block(layer).self_attn for layer in range(2)]
    wanted = [part for each in attention for part in (each.q_proj, each.v_proj)]
    assert block_linears(loaded, ["v_proj", "q_proj"]) == wanted
    with pytest.raises(UserError, match="has no linear layer 'query'"):
        block_linears(loaded, ["q_proj", "query"])


def test_every_linear_layer_of_the_blocks_takes_part_and_the_head_does_not():
    loaded = tiny_model("llama")
    assert len(block_linears(loaded)) == 2 * 7
    assert loaded.head not in block_linears(loaded)
