"""Context prefixes: how many, how long, drawn from the likeliest tokens, the same for a seed."""

import pytest
import torch

from harness.models.catalogue import ModelRef
from methods.common import prefixes
from tests.helpers.tiny_models import ARCHITECTURES, tiny_model
from tests.helpers.tiny_rome import TinyContext

ROME = [(5, 2), (10, 2)]


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return tiny_model(request.param)


def test_romes_groups_give_twenty_prefixes_that_begin_with_the_five_words(model):
    texts = prefixes.sample(model, ROME, seed=0)
    assert len(texts) == 20
    expected = [word for _ in ROME for word in prefixes.WORDS for _ in range(2)]
    assert all(text.startswith(word) for text, word in zip(texts, expected, strict=True))
    assert all(text.endswith(". ") and not set("{}\n") & set(text) for text in texts)


def test_a_row_grows_to_its_length_whatever_length_it_began_with(model):
    begun = [model.tokenizer(word)["input_ids"] for word in prefixes.WORDS]
    assert len({len(ids) for ids in begun}) > 1
    grown = prefixes.grow(model, begun, 10, torch.Generator().manual_seed(0))
    assert [len(ids) for ids in grown] == [10] * len(begun)
    assert all(new[: len(old)] == old for new, old in zip(grown, begun, strict=True))


def test_every_token_is_one_of_the_five_likeliest_after_those_before_it(model):
    """Each row by itself, unpadded, one forward per token."""
    begun = [model.tokenizer(word)["input_ids"] for word in prefixes.WORDS]
    grown = prefixes.grow(model, begun, 10, torch.Generator().manual_seed(0))
    ranks = set()
    for old, new in zip(begun, grown, strict=True):
        for end in range(len(old), len(new)):
            with torch.no_grad():
                logits_V = model.model(input_ids=torch.tensor([new[:end]])).logits[0, -1]
            ranks.add(int((logits_V > logits_V[new[end]]).sum()))
    assert ranks <= set(range(prefixes.TOP_K))
    assert len(ranks) > 1, "sampled, not the likeliest each time"


def test_a_seed_decides_the_prefixes_and_nothing_else_does(model):
    first = prefixes.sample(model, ROME, seed=3)
    torch.manual_seed(99)
    assert prefixes.sample(model, ROME, seed=3) == first
    assert prefixes.sample(model, ROME, seed=4) != first


def test_an_artifact_gives_back_what_was_sampled(model, tmp_path):
    ref = ModelRef("llama2-7b", "pretrained", sha256="x")
    spec = prefixes.artifact(ref, [(10, 1)], seed=5)
    context = TinyContext(model)
    prefixes.build(spec, context, tmp_path)
    assert prefixes.load(tmp_path) == tuple(prefixes.sample(model, [(10, 1)], seed=5))
    assert context.phases == ["setup"]


def test_model_groups_and_seed_each_make_another_artifact():
    refs = [ModelRef("llama2-7b", "pretrained", sha256=sha256) for sha256 in "xy"]
    keys = [prefixes.artifact(ref, groups, seed).key for ref in refs for groups in (ROME, [(10, 1)]) for seed in (0, 1)]
    assert len(set(keys)) == 8
    assert prefixes.artifact(refs[0], ROME, 0).key == keys[0]
