"""The certified arg-max: always that of the whole fp64 distribution, whatever the vocabularies and distributions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.onceedit import certify, fusion, relative, single
from methods.onceedit.bounds import Tangents, exactly, from_lists, from_tangents
from methods.onceedit.certify import TIE
from methods.onceedit.fusion import Fused, Projection
from methods.onceedit.relative import RelativeState


def slow_fused(fused):
    """P over all anchors in fp64, from both R in full."""
    parts = []
    for projection, probs, share in (
        (fused.llm, fused.probs_l_BV, 1 - fused.alpha_B.double()),
        (fused.plugin, fused.probs_s_BU, fused.alpha_B.double()),
    ):
        state = projection.state
        x_VA = state.exponents(slice(0, state.n_tokens), slice(0, state.n_anchors))
        parts.append((probs.double() * share[:, None]) @ x_VA.softmax(dim=-1))
    return parts[0] + parts[1]


def first_of_the_largest(fused_BA):
    return (fused_BA >= fused_BA.amax(dim=-1, keepdim=True) * (1 - TIE)).int().argmax(dim=-1)


def random_projection(generator, tokens, width, anchors, rule, kind="normal", error=None):
    """In fp32 if an error is given, which is then claimed for log Z, so that more has to be recomputed in fp64."""
    embeddings_VD = torch.randn(tokens, width, generator=generator)
    if kind == "duplicates":
        embeddings_VD[tokens // 2 :] = embeddings_VD[: tokens - tokens // 2].clone()
    elif kind == "zeros":
        embeddings_VD[torch.randperm(tokens, generator=generator)[: tokens // 3]] = 0.0
    elif kind == "clusters":
        centres = torch.randn(4, width, generator=generator)
        embeddings_VD = centres[torch.randint(0, 4, (tokens,), generator=generator)] + 0.1 * embeddings_VD
    elif kind == "one direction":
        embeddings_VD = embeddings_VD.abs() + 3
    ids = torch.randperm(tokens, generator=generator)[:anchors].tolist()
    with pytest.MonkeyPatch.context() as patch:
        if error is not None:
            patch.setattr(relative, "SINGLE_ABOVE_PAIRS", 0)
            patch.setattr(single, "_SUM_ERROR", error)
        state = RelativeState.build(embeddings_VD, ids, rule, 20.0, nearest=4)
    assert (state.error > 0) == (error is not None)
    return Projection(state)


def random_probs(generator, rows, tokens, kind):
    if kind == "point":
        return torch.eye(tokens)[torch.randint(0, tokens, (rows,), generator=generator)]
    sharpness = {"flat": 0.0, "soft": 1.0, "peaked": 6.0, "sharp": 40.0}[kind]
    return (torch.randn(rows, tokens, generator=generator) * sharpness).softmax(dim=-1)


RULES = ("plain", "deepen", "centred", "whitened")
ERRORS = (None, 1e-5, 1e-3, 1e-2)
KINDS = ("normal", "duplicates", "zeros", "clusters", "one direction")
SHARPNESS = ("flat", "soft", "peaked", "sharp", "point")


@st.composite
def mixtures(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    anchors = draw(st.integers(1, 60))
    rule = draw(st.sampled_from(RULES))
    width = draw(st.sampled_from([1, 2, 5, 16]))

    def side():
        tokens = anchors + draw(st.integers(0, 40))
        kind, error = draw(st.sampled_from(KINDS)), draw(st.sampled_from(ERRORS))
        projection = random_projection(generator, tokens, width, anchors, rule, kind, error)
        return projection, random_probs(generator, 3, tokens, draw(st.sampled_from(SHARPNESS)))

    (llm, probs_l), (plugin, probs_s) = side(), side()
    alpha = torch.tensor([draw(st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])) for _ in range(3)])
    return Fused(llm, plugin, probs_l, probs_s, alpha)


@settings(max_examples=200, deadline=None)
@given(mixtures(), st.sampled_from([(0, 1), (2, 8), (8, 1024)]), st.sampled_from([0, 5, 256]))
def test_the_certified_anchor_is_the_arg_max_in_fp64(fused, limits, few):
    exact_rows, listed = limits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(certify, "EXACT_ROWS_L1", exact_rows)
        patch.setattr(certify, "EXACT_ROWS_L2", (2 * exact_rows, 3 * exact_rows + 1))
        patch.setattr(certify, "LISTED_L0", listed)
        patch.setattr(certify, "LISTED_L1", listed)
        patch.setattr(certify, "FEW_SURVIVORS", few)
        found = fused.certificate
    assert found.anchors_B.equal(first_of_the_largest(slow_fused(fused)))
    assert ((found.margin_B >= 0) & (found.margin_B <= 1)).all()
    assert (found.survivors_B >= 1).all()


@settings(max_examples=100, deadline=None)
@given(mixtures())
def test_every_bound_holds(fused):
    exact_BA = slow_fused(fused)
    sides = list(fused.sides())
    tangents = [Tangents.of(side) for side in sides]
    some = torch.arange(0, exact_BA.shape[1], 2)
    for low_BA, high_BA, anchors in (
        (*from_lists(sides, 3), slice(None)),
        (*from_tangents(tangents, 2, 5), slice(None)),
        (*from_tangents(tangents, 2, 5, some), some),
    ):
        largest_B = torch.maximum(high_BA.amax(dim=-1), exact_BA.amax(dim=-1))  # `some` may leave it out
        slack = (certify._slack(sides, high_BA) * largest_B)[:, None]
        assert (low_BA <= exact_BA[:, anchors] + slack).all()
        assert (high_BA >= exact_BA[:, anchors] - slack).all()
    assert torch.allclose(
        exactly(sides, some), exact_BA[:, some], rtol=1e-10 + 2 * max(side.state.error for side in sides)
    )


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [None, 1e-5, 1e-2])
def test_a_larger_vocabulary_is_searched_level_by_level(rule, kind, error):
    generator = torch.Generator().manual_seed(5)
    llm = random_projection(generator, 1500, 24, 1200, rule, kind, error)
    plugin = random_projection(generator, 1300, 12, 1200, rule, kind, error)
    levels = torch.zeros(3)
    for sharpness in ("soft", "peaked", "sharp"):
        probs_l, probs_s = (random_probs(generator, 4, n, sharpness) for n in (1500, 1300))
        fused = Fused(llm, plugin, probs_l, probs_s, torch.rand(4, generator=generator))
        assert fused.certificate.anchors_B.equal(first_of_the_largest(slow_fused(fused)))
        levels += torch.bincount(fused.certificate.level_B, minlength=3)
    assert levels[2] > 0
    if kind == "normal" and error != 1e-2:
        assert levels[0] > 0


def test_the_most_probable_token_need_not_be_an_anchor():
    generator = torch.Generator().manual_seed(2)
    llm = random_projection(generator, 300, 8, 100, "plain")
    outside = next(i for i in range(300) if i not in llm.state.anchor_ids_A)
    probs_l = torch.full((1, 300), 0.2 / 299).index_fill(1, torch.tensor([outside]), 0.8)
    fused = Fused(llm, llm, probs_l, probs_l, torch.tensor([0.3]))
    assert fused.certificate.anchors_B.equal(first_of_the_largest(slow_fused(fused)))


def test_a_tie_goes_to_the_first_anchor_whatever_the_batch():
    """Flat distributions over identity embeddings: all columns are equal."""
    projection = Projection(RelativeState.build(torch.eye(40), list(range(40)), "plain", nearest=2))
    for rows in (1, 3):
        flat = torch.full((rows, 40), 1 / 40)
        found = Fused(projection, projection, flat, flat, torch.full((rows,), 0.5)).certificate
        assert found.anchors_B.tolist() == [0] * rows
        assert found.level_B.tolist() == [2] * rows
        assert found.margin_B.max() < TIE


def test_the_margin_is_a_lower_bound_of_the_lead():
    generator = torch.Generator().manual_seed(3)
    llm, plugin = (random_projection(generator, 200, 8, 150, "plain") for _ in range(2))
    fused = Fused(
        llm,
        plugin,
        random_probs(generator, 50, 200, "peaked"),
        random_probs(generator, 50, 200, "peaked"),
        torch.rand(50, generator=generator),
    )
    top_B2 = slow_fused(fused).topk(2, dim=-1).values
    lead_B = (top_B2[:, 0] - top_B2[:, 1]) / top_B2[:, 0]
    assert (fused.certificate.margin_B <= lead_B + 1e-6).all()
    assert fused.certificate.margin_B.max() > 0.1


def test_rows_that_nobody_needs_are_not_searched():
    projection = Projection(RelativeState.build(torch.eye(40), list(range(40)), "plain", nearest=2))
    flat = torch.full((2, 40), 1 / 40)
    needed = torch.tensor([True, False])
    fused = Fused(projection, projection, flat, flat, torch.full((2,), 0.5), needed)
    assert fused.certificate.level_B.tolist() == [2, 0]


def test_a_batch_in_parts_is_the_batch(monkeypatch):
    generator = torch.Generator().manual_seed(6)
    llm, plugin = (random_projection(generator, 90, 8, 60, "plain") for _ in range(2))
    probs_l, probs_s = (random_probs(generator, 7, 90, "peaked") for _ in range(2))
    alpha, needed = torch.rand(7, generator=generator), torch.arange(7) != 3
    whole = Fused(llm, plugin, probs_l, probs_s, alpha, needed).certificate
    monkeypatch.setattr(fusion, "ROWS_BYTES", 2 * 8 * 90)
    parts = Fused(llm, plugin, probs_l, probs_s, alpha, needed).certificate
    assert parts.anchors_B.equal(whole.anchors_B)
    assert parts.level_B.equal(whole.level_B)


def test_the_target_model_alone_is_the_mixture_at_alpha_zero():
    generator = torch.Generator().manual_seed(4)
    llm, plugin = (random_projection(generator, 90, 8, 60, "deepen") for _ in range(2))
    probs_l, probs_s = (random_probs(generator, 20, 90, "soft") for _ in range(2))
    with_plugin = Fused(llm, plugin, probs_l, probs_s, torch.rand(20, generator=generator))
    without = Fused(llm, plugin, probs_l, probs_s, torch.zeros(20))
    assert with_plugin.certificate_of_llm.anchors_B.equal(without.certificate.anchors_B)


def test_three_tokens_of_the_worked_example():
    identity = Projection(RelativeState.build(torch.eye(3), [0, 1, 2], "plain"))
    fused = Fused(
        identity, identity, torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.1, 0.2, 0.7]]), torch.tensor([0.5])
    )
    assert torch.allclose(fused.probs_BA, torch.tensor([[0.3212, 0.3030, 0.3758]]), atol=5e-5)
    assert fused.certificate.anchors_B.tolist() == [2]
