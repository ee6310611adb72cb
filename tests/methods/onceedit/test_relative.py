"""Relative states: known values, tiles against the whole matrix, columns and owners."""

import pytest
import torch

from methods.onceedit.relative import RelativeState


def slow_rows(embeddings_VD, anchors, rule):
    """The two formulas as printed, in fp64, row by row."""
    unit_VD = embeddings_VD.double() / embeddings_VD.double().norm(dim=-1, keepdim=True)
    rows = []
    for token, unit_D in enumerate(unit_VD):
        cosines_A = torch.stack([torch.tensor(1.0).double() if a == token else unit_D @ unit_VD[a] for a in anchors])
        rows.append(torch.softmax(cosines_A * (100 / cosines_A.norm() if rule == "deepen" else 1), dim=-1))
    return torch.stack(rows)


@pytest.fixture(params=["plain", "deepen"])
def rule(request):
    return request.param


@pytest.fixture
def embeddings_VD():
    return torch.randn(53, 8, generator=torch.Generator().manual_seed(1))


ANCHORS = [4, 50, 7, 0, 31, 12, 13, 14]


@pytest.fixture(params=["whole", "tiles"])
def state(request, embeddings_VD, rule):
    limits = {"materialise_below_bytes": 0, "tile_bytes": 7 * 4 * len(ANCHORS)} if request.param == "tiles" else {}
    state = RelativeState.build(embeddings_VD, ANCHORS, rule, **limits)
    assert (state.matrix_VA is None) == (request.param == "tiles")
    return state


def test_three_identity_embeddings_give_the_known_rows():
    state = RelativeState.build(torch.eye(3), [0, 1, 2], "plain")
    expected = torch.full((3, 3), 0.2119).fill_diagonal_(0.5761)
    assert torch.allclose(state.rows(0, 3), expected, atol=5e-5)


def test_rows_follow_the_formulas(state, embeddings_VD, rule):
    assert torch.allclose(state.rows(0, 53).double(), slow_rows(embeddings_VD, ANCHORS, rule), atol=2e-6)


def test_projection_is_the_product_with_the_rows(state, embeddings_VD, rule):
    probs_BV = torch.rand(5, 53).softmax(dim=-1)
    assert torch.allclose(
        state.project(probs_BV), probs_BV @ slow_rows(embeddings_VD, ANCHORS, rule).float(), atol=1e-6
    )
    assert torch.allclose(state.project(probs_BV).sum(dim=-1), torch.ones(5))


def test_back_projection_is_the_adjoint_of_projection(state):
    probs_BV, weights_BA = torch.rand(3, 53), torch.rand(3, len(ANCHORS))
    left, right = (state.project(probs_BV) * weights_BA).sum(), (probs_BV * state.back_project(weights_BA)).sum()
    assert left.item() == pytest.approx(right.item(), rel=1e-5)


def test_columns_are_those_of_the_rows(state):
    columns_BV = state.columns(torch.tensor([3, 0, 3]))
    assert torch.allclose(columns_BV, state.rows(0, 53)[:, [3, 0, 3]].T, rtol=1e-4, atol=1e-7)


def test_owners_are_the_column_maxima(state, embeddings_VD, rule):
    rows_VA = slow_rows(embeddings_VD, ANCHORS, rule)
    owned_A = rows_VA[state.owner_A, range(len(ANCHORS))]
    assert torch.allclose(owned_A, rows_VA.amax(dim=0), rtol=0, atol=1e-6)
    if rule == "plain":  # `deepen` saturates at 1 in fp32, see the test of ties
        assert state.owner_A.tolist() == rows_VA.argmax(dim=0).tolist()


@pytest.mark.parametrize("limits", [{}, {"materialise_below_bytes": 0, "tile_bytes": 8}])
def test_a_tie_goes_to_the_anchors_own_token(limits):
    embeddings_VD = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 1.0]])
    state = RelativeState.build(embeddings_VD, [1, 2], "deepen", **limits)
    assert state.rows(2, 3)[0, 1] == 1.0
    assert state.rows(0, 1)[0, 1] == 1.0
    assert state.owner_A.tolist() == [1, 2]


def test_the_cosine_of_an_anchor_with_itself_is_exactly_one(embeddings_VD):
    state = RelativeState.build(embeddings_VD, ANCHORS, "plain")
    assert all(state._cosines(0, 53)[token, column] == 1.0 for column, token in enumerate(ANCHORS))


def test_half_precision_embeddings_are_read_in_fp32(embeddings_VD):
    state = RelativeState.build(embeddings_VD.bfloat16(), ANCHORS, "plain")
    assert state.rows(0, 53).dtype == torch.float32
    assert state.rows(0, 53)[:, 0].unique().numel() > 45


def test_a_row_of_zeros_is_uniform_and_not_nan(rule):
    state = RelativeState.build(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), [1, 2], rule)
    assert state.rows(0, 1).tolist() == [[0.5, 0.5]]


def test_an_anchor_twice_is_refused(embeddings_VD):
    with pytest.raises(ValueError, match="twice"):
        RelativeState.build(embeddings_VD, [1, 1], "plain")
