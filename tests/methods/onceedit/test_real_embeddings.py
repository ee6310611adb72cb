"""Certified arg-max on the embeddings of pretrained models: always that of the whole distribution in fp64."""

import pytest
import torch

from harness.models.catalogue import reference
from harness.models.loading import load
from methods.onceedit.anchors import pair_anchors
from methods.onceedit.fusion import Fused, Projection
from methods.onceedit.pair import input_embeddings
from methods.onceedit.relative import RelativeState
from methods.onceedit.vocabulary import Vocabulary

pytestmark = [pytest.mark.small, pytest.mark.slow]
RULES = ("plain", "deepen", "centred", "whitened")
TOKENS, ANCHORS = 3_000, 1_500


def part_of_real_pair():
    """Rows of both embedding tables: shared tokens, of which half are anchors here, and tokens of one model only."""
    models = [load(reference(name), "cpu") for name in ("gemma-3-270m", "smollm2-135m")]
    shared = pair_anchors(*(Vocabulary.of(model.tokenizer) for model in models))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(shared), generator=generator)[:ANCHORS]
    for model, of_model in zip(models, (shared.llm_ids, shared.plugin_ids), strict=True):
        table_VD = input_embeddings(model.model)
        anchors = torch.tensor(of_model)[chosen]
        others = torch.randperm(len(table_VD), generator=generator)[: TOKENS - ANCHORS]
        yield table_VD[torch.cat([anchors, others])]


@pytest.fixture(scope="module")
def tables():
    return list(part_of_real_pair())


@pytest.mark.parametrize("pairs_in_fp64", [2**28, 0], ids=["fp64", "fp32"])
@pytest.mark.parametrize("rule", RULES)
def test_the_certified_anchor_is_the_arg_max_in_fp64_across_vocabularies(tables, rule, pairs_in_fp64, monkeypatch):
    """Also from states that were computed in fp32, as those of whole vocabularies are."""
    monkeypatch.setattr("methods.onceedit.relative.SINGLE_ABOVE_PAIRS", pairs_in_fp64)
    llm, plugin = (Projection(RelativeState.build(table, range(ANCHORS), rule, 20.0)) for table in tables)
    assert all((side.state.error > 0) == (pairs_in_fp64 == 0) for side in (llm, plugin))
    generator = torch.Generator().manual_seed(1)

    def probs(sharpness):
        return (torch.randn(24, TOKENS, generator=generator) * sharpness).softmax(dim=-1)

    for sharpness in (1.0, 3.0, 8.0):
        fused = Fused(llm, plugin, probs(sharpness), probs(sharpness), torch.rand(24, generator=generator))
        whole_BA = sum(
            side.weights_BV @ side.state.exponents(slice(None), slice(None)).softmax(dim=-1) for side in fused.sides()
        )
        assert fused.certificate.anchors_B.equal(whole_BA.argmax(dim=-1))
