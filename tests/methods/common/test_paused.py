import pytest
import torch

from harness.errors import UserError
from harness.models.batching import left_padded
from harness.models.routed import matrix, output_replaced
from harness.records import EditRequest
from harness.tokens import joint_query
from methods.common.paused import Paused, edit_queries
from tests.helpers.tiny_models import ARCHITECTURES, FAMILIES, catalogued_families, precise, tiny_model

QUESTIONS = [
    ("The mother tongue of Danielle Darrieux is", "French"),
    ("Paris", "is the capital of France and the home of the Eiffel Tower"),
    ("東京 is the capital of", "日本"),
]

TOLERANCE = 1e-5
"""Norms of Llama and Mistral compute in fp32, whatever the model's precision."""


@pytest.fixture(scope="module", autouse=True)
def _families():
    with catalogued_families():
        yield


@pytest.fixture(params=[*ARCHITECTURES, *FAMILIES])
def model(request):
    torch.set_num_threads(1)
    loaded = tiny_model(request.param)
    loaded.model.to(precise(request.param))
    return loaded


@pytest.fixture
def queries(model):
    return [joint_query(model.tokenizer, prompt, target) for prompt, target in QUESTIONS]


def slow_loss(model, query, layer, output_TD):
    """Cross-entropy of one row by the whole model, with a hook that puts `output_TD` in the matrix's place."""
    ids = torch.tensor([query.prompt_ids + query.target_ids])
    with output_replaced(matrix(model, layer), lambda _, outputs_BTD: output_TD[None]):
        logits_TV = model.model(input_ids=ids).logits[0]
    targets_A = torch.tensor(query.target_ids)
    return torch.nn.functional.cross_entropy(logits_TV[len(query.prompt_ids) - 1 : -1], targets_A)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_losses_and_gradients_are_those_of_the_whole_model(layer, model, queries):
    paused = Paused(model, queries, layer)
    given_BTD = torch.randn(paused.outputs_BTD.shape, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    given_BTD = given_BTD.to(paused.outputs_BTD.dtype)
    given_BTD.requires_grad_(True)
    losses_B = paused.losses(given_BTD)
    (gradient_BTD,) = torch.autograd.grad(losses_B.sum(), given_BTD)
    for row, query in enumerate(queries):
        length = len(query.prompt_ids) + len(query.target_ids)
        output_TD = given_BTD[row, :length].detach().requires_grad_(True)
        loss = slow_loss(model, query, layer, output_TD)
        (gradient_TD,) = torch.autograd.grad(loss, output_TD)
        torch.testing.assert_close(losses_B[row], loss, rtol=TOLERANCE, atol=0)
        scale = gradient_TD.abs().max()
        assert (gradient_BTD[row, :length] - gradient_TD).abs().max() < TOLERANCE * scale
        assert not gradient_BTD[row, length:].any()


def test_inputs_and_outputs_are_those_of_the_matrix(model, queries):
    paused = Paused(model, queries, 1)
    torch.testing.assert_close(matrix(model, 1)(paused.inputs_BTK), paused.outputs_BTD)
    for row, query in enumerate(queries):
        seen = []
        with output_replaced(matrix(model, 1), lambda x, y, seen=seen: (seen.append(x[0]), y)[1]), torch.no_grad():
            model.model(input_ids=torch.tensor([query.prompt_ids + query.target_ids]))
        torch.testing.assert_close(paused.inputs_BTK[row, : len(seen[0])], seen[0], rtol=TOLERANCE, atol=TOLERANCE)
        assert paused.mask_BT[row].sum() == len(query.prompt_ids) + len(query.target_ids)
        assert paused.prompt_BT[row].nonzero().flatten().tolist() == list(range(len(query.prompt_ids)))


def test_rows_may_be_padded_on_either_side(model, queries):
    right, left = Paused(model, queries, 1), Paused(model, queries, 1, left_padded)
    for row, query in enumerate(queries):
        length = len(query.prompt_ids) + len(query.target_ids)
        torch.testing.assert_close(
            left.inputs_BTK[row, -length:], right.inputs_BTK[row, :length], rtol=TOLERANCE, atol=TOLERANCE
        )
        torch.testing.assert_close(left.prompt_BT[row, -length:], right.prompt_BT[row, :length])
    losses_B = left.losses(left.outputs_BTD)
    torch.testing.assert_close(losses_B, right.losses(right.outputs_BTD), rtol=TOLERANCE, atol=0)


def test_one_row_that_is_not_a_number_leaves_the_others_alone(model, queries):
    paused = Paused(model, queries, 0)
    given_BTD = paused.outputs_BTD.clone()
    given_BTD[1] = float("nan")
    given_BTD.requires_grad_(True)
    losses_B = paused.losses(given_BTD)
    (gradient_BTD,) = torch.autograd.grad(losses_B.sum(), given_BTD)
    assert losses_B.isfinite().tolist() == [True, False, True]
    assert gradient_BTD.isfinite().all(-1).all(-1).tolist() == [True, False, True]


def test_a_request_longer_than_the_context_is_refused_by_name(model):
    request = EditRequest("record-7", "Paris is the capital of France " * 400, "Paris", "Björk", "")
    with pytest.raises(UserError, match="record-7"):
        edit_queries(model, [request])
