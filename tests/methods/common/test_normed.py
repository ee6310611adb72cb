import pytest
import torch

from methods.common.normed import value_for
from tests.helpers.tiny_models import catalogued_families, tiny_model

LAYER = 1


@pytest.fixture(params=["gemma2", "gemma3_text", "olmo2"])
def norm(request):
    """A norm with a gain of its own for each component."""
    with catalogued_families():
        model = tiny_model(request.param)
        norm = model.module(model.layout.value_norm, LAYER)
    generator = torch.Generator().manual_seed(3)
    norm.weight.copy_(torch.rand(norm.weight.shape, generator=generator) + 0.2)
    return norm


def drawn(seed, rows=5, width=32):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_what_a_norm_can_give_is_given_exactly(norm):
    values_ND, other_ND = drawn(0), 3 * drawn(1)
    found_ND = value_for(norm, values_ND, norm(other_ND))
    torch.testing.assert_close(norm(found_ND.float()), norm(other_ND), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found_ND.norm(dim=-1), values_ND.double().norm(dim=-1))


def test_of_everything_else_the_nearest_is_given(norm):
    """Against gradient descent from many starts, and against the scaled direction that would be the obvious answer."""
    values_ND, wanted_ND = drawn(0), norm(drawn(0)) + drawn(2)
    found_ND = norm(value_for(norm, values_ND, wanted_ND).float())
    distance_N = (found_ND - wanted_ND).norm(dim=-1)
    for seed in range(4):
        tried_ND = drawn(10 + seed).requires_grad_()
        adam = torch.optim.Adam([tried_ND], lr=0.05)
        for _ in range(400):
            loss = (norm(tried_ND) - wanted_ND).square().sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
        reached_N = (norm(tried_ND) - wanted_ND).norm(dim=-1)
        assert (distance_N <= reached_N + 1e-4).all()
        torch.testing.assert_close(distance_N, reached_N.detach(), rtol=1e-2, atol=1e-2)


def test_the_value_of_an_unchanged_stream_is_the_value_itself(norm):
    values_ND = drawn(0)
    torch.testing.assert_close(value_for(norm, values_ND, norm(values_ND)).float(), values_ND, rtol=1e-4, atol=1e-5)
