"""The round trip: the share of a model's own tokens that anchor space gives back, against the whole matrix."""

import pytest
import torch

from methods.onceedit.relative import RelativeState
from methods.onceedit.round_trip import QUESTIONS, TEXTS, round_trip
from tests.helpers.tiny_models import tiny_model


@pytest.mark.parametrize("rule", ["plain", "whitened"])
def test_the_share_is_that_of_the_whole_distribution(rule):
    target = tiny_model("llama")
    embeddings_VD = target.model.get_input_embeddings().weight.detach()
    state = RelativeState.build(embeddings_VD, range(0, len(embeddings_VD), 2), rule, 5.0)
    rows_VA = state.rows(0, state.n_tokens).double()
    kept = []
    for text, first in [*((text, 3) for text in TEXTS), *((text, -1) for text in QUESTIONS)]:
        ids = target.tokenizer(text)["input_ids"]
        with torch.no_grad():
            logits_TV = target.model(torch.tensor([ids])).logits[0, first:].double()
        anchors_T = (logits_TV.softmax(dim=-1) @ rows_VA).argmax(dim=-1)
        kept += (rows_VA[:, anchors_T].argmax(dim=0) == logits_TV.argmax(dim=-1)).tolist()
    assert len(kept) > 80
    assert round_trip(target.model, target.tokenizer, state) == sum(kept) / len(kept)
