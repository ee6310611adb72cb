"""Products with the whole of R, in memory and by tiles."""

import pytest
import torch

from methods.onceedit.matrix import TransferMatrix
from methods.onceedit.relative import RelativeState

ANCHORS = [4, 50, 7, 0, 31, 12, 13, 14]


@pytest.fixture(params=["plain", "deepen"])
def state(request):
    embeddings_VD = torch.randn(53, 8, generator=torch.Generator().manual_seed(1))
    return RelativeState.build(embeddings_VD, ANCHORS, request.param)


@pytest.fixture(params=["whole", "tiles"])
def matrix(request, state):
    limits = {"materialise_below_bytes": 0, "tile_bytes": 7 * 4 * len(ANCHORS)} if request.param == "tiles" else {}
    matrix = TransferMatrix.of(state, **limits)
    assert (matrix.matrix_VA is None) == (request.param == "tiles")
    return matrix


def test_projection_is_the_product_with_the_rows(matrix, state):
    probs_BV = torch.rand(5, 53).softmax(dim=-1)
    assert torch.allclose(matrix.project(probs_BV), probs_BV @ state.rows(0, 53), atol=1e-6)
    assert torch.allclose(matrix.project(probs_BV).sum(dim=-1), torch.ones(5))


def test_products_are_the_same_bit_for_bit_whether_or_not_there_is_room_for_the_matrix(state):
    probs_BV, weights_BA, tile_bytes = torch.rand(5, 53), torch.rand(3, len(ANCHORS)), 7 * 4 * len(ANCHORS)
    kept, computed = (
        TransferMatrix.of(state, materialise_below_bytes=limit, tile_bytes=tile_bytes) for limit in (10**9, 0)
    )
    assert kept.matrix_VA is not None
    assert computed.matrix_VA is None
    assert torch.equal(kept.project(probs_BV), computed.project(probs_BV))
    assert torch.equal(kept.back_project(weights_BA), computed.back_project(weights_BA))


def test_back_projection_is_the_adjoint_of_projection(matrix):
    probs_BV, weights_BA = torch.rand(3, 53), torch.rand(3, len(ANCHORS))
    left, right = (matrix.project(probs_BV) * weights_BA).sum(), (probs_BV * matrix.back_project(weights_BA)).sum()
    assert left.item() == pytest.approx(right.item(), rel=1e-5)
