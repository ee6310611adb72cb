"""Relative states: known values, what is kept of a row against the row, columns and owners, and no V × A numbers."""

import pytest
import torch

from methods.onceedit import relative, single
from methods.onceedit.decoders import AnchorTokens, ColumnDecoder
from methods.onceedit.fusion import Fused, Projection
from methods.onceedit.relative import RelativeState

TEMPERATURE = 7.0


def slow_rows(embeddings_VD, anchors, rule):
    """The formulas as printed, in fp64, row by row; whitened embeddings are made explicitly."""
    moved_VD = embeddings_VD.double()
    if rule in ("centred", "whitened"):
        moved_VD = moved_VD - moved_VD.mean(dim=0)
    if rule == "whitened":
        variances_D, directions_DD = torch.linalg.eigh(torch.cov(moved_VD.T, correction=0))
        moved_VD = moved_VD @ directions_DD / variances_D.clamp_min(1e-4 * variances_D[-1]).sqrt()
    unit_VD = moved_VD / moved_VD.norm(dim=-1, keepdim=True)
    rows = []
    for token, unit_D in enumerate(unit_VD):
        cosines_A = torch.stack([torch.tensor(1.0).double() if a == token else unit_D @ unit_VD[a] for a in anchors])
        scale = {"deepen": 100 / cosines_A.norm(), "plain": 1}.get(rule, TEMPERATURE)
        rows.append(torch.softmax(cosines_A * scale, dim=-1))
    return torch.stack(rows)


@pytest.fixture(params=["plain", "deepen", "centred", "whitened"])
def rule(request):
    return request.param


@pytest.fixture
def embeddings_VD():
    return torch.randn(53, 8, generator=torch.Generator().manual_seed(1))


ANCHORS = [4, 50, 7, 0, 31, 12, 13, 14]


@pytest.fixture(params=["whole", "tiles"])
def state(request, embeddings_VD, rule, monkeypatch):
    if request.param == "tiles":
        monkeypatch.setattr(relative, "TILE_BYTES", 8 * 8 * 3)
        monkeypatch.setattr(relative, "PASS_BYTES", 8 * 8 * 5)
    return RelativeState.build(embeddings_VD, ANCHORS, rule, TEMPERATURE, nearest=3)


def test_three_identity_embeddings_give_the_known_rows():
    state = RelativeState.build(torch.eye(3), [0, 1, 2], "plain")
    expected = torch.full((3, 3), 0.2119).fill_diagonal_(0.5761)
    assert torch.allclose(state.rows(0, 3), expected, atol=5e-5)


def test_rows_follow_the_formulas(state, embeddings_VD, rule):
    assert torch.allclose(state.rows(0, 53).double(), slow_rows(embeddings_VD, ANCHORS, rule), atol=2e-6)


def test_what_is_kept_of_a_row_is_that_rows(state, embeddings_VD, rule):
    rows_VA = slow_rows(embeddings_VD, ANCHORS, rule)
    kept_VM = (state.near_x_VM.double() - state.log_z_V[:, None]).exp()
    top_VM, _ = rows_VA.topk(4, dim=-1)
    assert torch.allclose(kept_VM, top_VM[:, :3], rtol=1e-5)
    assert torch.allclose(rows_VA.gather(1, state.near_VM.long()), top_VM[:, :3], rtol=1e-10)
    assert torch.allclose((state.next_x_V - state.log_z_V).exp(), top_VM[:, 3], rtol=1e-10)
    assert torch.allclose((state.low_x_V - state.log_z_V).exp(), rows_VA.amin(dim=-1), rtol=1e-10)
    exponents_VA = rows_VA.log() + state.log_z_V[:, None]
    is_listed_VA = torch.zeros(53, 8, dtype=torch.bool).scatter(1, state.near_VM.long(), True)
    mean_V = exponents_VA.masked_fill(is_listed_VA, 0).sum(dim=-1) / 5
    assert torch.allclose(state.mean_x_V, mean_V, rtol=1e-8, atol=1e-10)
    assert exponents_VA.abs().max() <= state.largest_x * (1 + 1e-12)


def test_a_list_of_all_anchors_leaves_no_rest(embeddings_VD, rule):
    state = RelativeState.build(embeddings_VD, ANCHORS, rule, TEMPERATURE, nearest=99)
    assert state.near_VM.shape == (53, 8)
    assert state.next_x_V.equal(state.low_x_V)


def test_columns_are_those_of_the_rows(state):
    columns_BV = state.columns(torch.tensor([3, 0, 3]))
    assert torch.allclose(columns_BV, state.rows(0, 53)[:, [3, 0, 3]].T.double(), rtol=1e-4, atol=1e-7)


def test_owners_are_the_column_maxima(state, embeddings_VD, rule):
    rows_VA = slow_rows(embeddings_VD, ANCHORS, rule)
    assert torch.allclose(rows_VA[state.owner_A, range(len(ANCHORS))], rows_VA.amax(dim=0), rtol=1e-10, atol=0)


def test_a_tie_goes_to_the_anchors_own_token():
    """Two tokens with one embedding have one row, but for the exact 1 on the diagonal."""
    state = RelativeState.build(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), [2, 1], "plain")
    assert state.owner_A.tolist() == [2, 1]


def test_rows_that_tie_in_fp32_keep_their_owner():
    """R[1, 1] and R[2, 1] are 1 - 4e-44 and 1 - 2e-9."""
    state = RelativeState.build(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), [0, 1], "deepen")
    assert state.rows(0, 3)[1, 1] == state.rows(0, 3)[2, 1] == 1.0
    assert state.owner_A.tolist() == [0, 1]


@pytest.mark.parametrize("rule", ["plain", "deepen"])
def test_a_row_of_zeros_is_uniform_but_for_itself(rule):
    state = RelativeState.build(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), [0, 1], rule)
    assert torch.allclose(state.rows(2, 3), torch.tensor([[0.5, 0.5]]))
    assert state.rows(1, 2)[0, 1] > 0.7
    assert state.is_zero_V.tolist() == [False, True, True]


def test_half_precision_embeddings_are_widened_not_copied(embeddings_VD, rule):
    half_VD = embeddings_VD.bfloat16()
    state = RelativeState.build(half_VD, ANCHORS, rule, TEMPERATURE)
    assert state.embeddings_VD.data_ptr() == half_VD.data_ptr()
    assert torch.allclose(state.rows(0, 53).double(), slow_rows(half_VD, ANCHORS, rule), atol=2e-6)


def test_a_token_cannot_be_an_anchor_twice(embeddings_VD):
    with pytest.raises(ValueError, match="twice"):
        RelativeState.build(embeddings_VD, [1, 2, 1])


def test_whitening_tells_apart_embeddings_that_share_a_direction():
    """All cosines of the raw embeddings are above .9; after whitening, those of different tokens are near 0."""
    generator = torch.Generator().manual_seed(3)
    embeddings_VD = torch.randn(400, 8, generator=generator) * torch.logspace(0, -1, 8) + 9
    raw, white = (RelativeState.build(embeddings_VD, range(400), rule, 1.0) for rule in ("plain", "whitened"))
    cosines_VA = raw.exponents(slice(0, 400), slice(0, 400))
    assert cosines_VA.min() > 0.9
    white_VA = white.exponents(slice(0, 400), slice(0, 400))
    assert white_VA.mean().abs() < 0.01
    assert (white_VA - torch.eye(400)).std() < 0.4


@pytest.fixture
def in_fp32(embeddings_VD, rule, monkeypatch):
    monkeypatch.setattr(relative, "SINGLE_ABOVE_PAIRS", 0)
    monkeypatch.setattr(single, "TILE_BYTES", 4 * 8 * 5)
    return RelativeState.build(embeddings_VD, ANCHORS, rule, TEMPERATURE, nearest=3)


def test_a_pass_in_fp32_is_as_far_from_fp64_as_it_says(state, in_fp32):
    assert 1e-5 < in_fp32.error < 1e-3
    assert torch.allclose(in_fp32.log_z_V, state.log_z_V, rtol=0, atol=in_fp32.error)
    assert in_fp32.scale_V.allclose(state.scale_V, rtol=1e-10)
    listed = slice(0, 53), slice(0, 8)
    exponents_VA = state.exponents(*listed)
    found_VM = exponents_VA.gather(1, in_fp32.near_VM.long())
    assert torch.allclose(in_fp32.near_x_VM.double(), found_VM, rtol=0, atol=in_fp32.error)
    assert (in_fp32.low_x_V <= exponents_VA.amin(dim=-1)).all()
    unlisted_VA = exponents_VA.scatter(1, in_fp32.near_VM.long(), -torch.inf)
    assert (in_fp32.next_x_V >= unlisted_VA.amax(dim=-1)).all()


def test_log_z_is_wrong_only_as_far_as_it_consists_of_other_pairs(state, in_fp32):
    """A token's pair with itself is exact; where it holds nearly all of a row, so is the row."""
    own_A = (state.scale_V - state.log_z_V)[state.anchor_ids_A].exp()
    wrong_A = (in_fp32.log_z_V - state.log_z_V)[state.anchor_ids_A].abs()
    assert (wrong_A <= in_fp32.error * (1 - own_A) + 1e-12).all()


def test_what_a_pass_in_fp32_leaves_open_is_computed_when_it_is_read(state, in_fp32):
    some = torch.tensor([5, 1, 5, 40])
    assert in_fp32.exact_log_z(some).allclose(state.log_z_V[some], rtol=1e-13)
    assert in_fp32.owners(torch.arange(8)).equal(state.owner_A)
    assert (in_fp32.owner_A >= 0).all()


def test_an_owner_is_entered_only_if_it_is_proved(state, in_fp32):
    known_A = in_fp32.owner_A >= 0
    assert in_fp32.owner_A[known_A].equal(state.owner_A[known_A])


@pytest.mark.parametrize("single_above", [0, 10**9], ids=["fp32", "fp64"])
def test_an_anchor_is_told_from_a_token_like_it_where_both_values_are_almost_one(single_above, monkeypatch):
    """As a word and the same word without a space in front, which is no anchor: both are 1 in fp32."""
    monkeypatch.setattr(relative, "SINGLE_ABOVE_PAIRS", single_above)
    anchors_AD = torch.eye(20)
    like_them_AD = torch.cat([0.5 * anchors_AD, 0.75**0.5 * anchors_AD], dim=1)
    embeddings_VD = torch.cat([torch.nn.functional.pad(anchors_AD, (0, 20)), like_them_AD])
    state = RelativeState.build(embeddings_VD, range(20), "centred", 40.0)
    projection, certain_BV = Projection(state), torch.eye(40)[:20]
    fused = Fused(projection, projection, certain_BV, certain_BV, torch.zeros(20))
    assert fused.certificate.anchors_B.equal(torch.arange(20))
    assert AnchorTokens(ColumnDecoder(), state).decode(fused, certain_BV).tokens_B.equal(torch.arange(20))


@pytest.mark.parametrize("single_above", [0, 10**9])
def test_progress_counts_every_token_once(single_above, monkeypatch):
    monkeypatch.setattr(relative, "SINGLE_ABOVE_PAIRS", single_above)
    monkeypatch.setattr(relative, "PASS_BYTES", 8 * 20 * 7)
    monkeypatch.setattr(single, "TILE_BYTES", 4 * 20 * 7)
    counted = []
    embeddings = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    RelativeState.build(embeddings, range(20), "plain", advance=counted.append)
    assert sum(counted) == 50
    assert len(counted) > 1
