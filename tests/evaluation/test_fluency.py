"""Metrics of generated text against ROME's formulas, written out: numpy over frequencies, dense vectors, one forward pass."""

import json
import unicodedata
from collections import Counter

import numpy as np
import pytest
import torch

from harness.errors import UserError
from harness.evaluation import fluency
from harness.evaluation.fluency import (
    LONGEST,
    FluencyRef,
    consistency,
    essence,
    fluency_metrics,
    ngram_entropy,
    norm_drift,
    norms,
    reference,
    tfidf,
)
from harness.models.edited import WeightEditedModel
from harness.records import DataRef, Dataset, EditRecord
from tests.helpers.tiny_models import tiny_model

TEXTS = (
    "Paris is old and Paris is large and Paris is old",
    "the Eiffel Tower stands in Paris , however , not in Iceland",
    "one two one two one two one two",
)


@pytest.fixture(autouse=True)
def words_without_nltk(monkeypatch):
    monkeypatch.setattr(fluency, "_words", str.split)


def romes_entropy(text):
    """`compute_n_gram_entropy` of ROME's evaluation."""
    words, found = text.split(), []
    for n in (2, 3):
        counts = np.array(list(Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)).values()))
        shares = counts / counts.sum()
        found.append(np.sum(-shares * np.log(shares) / np.log(2)))
    return np.mean(np.array(found) * np.array([2 / 3, 4 / 3]))


@pytest.mark.parametrize("text", TEXTS)
def test_entropy_equals_that_of_romes_code(text):
    assert ngram_entropy(text) == pytest.approx(romes_entropy(text), abs=1e-12)


def test_consistency_is_the_cosine_of_dense_vectors():
    weights = tfidf(TEXTS)
    left, right = weights.transform([" ".join(TEXTS[:2]), TEXTS[1]]).toarray()
    wanted = left @ right / np.linalg.norm(left) / np.linalg.norm(right)
    assert consistency(TEXTS[:2], TEXTS[1:2], weights) == pytest.approx(wanted, abs=1e-12)
    assert np.isnan(consistency(["zzz"], TEXTS[:1], weights))


@torch.no_grad()
def test_essence_is_romes_perplexity_of_the_first_ids():
    model = tiny_model("llama")
    text = "The Eiffel Tower stands in Paris. " * 20
    ids = model.tokenizer(text)["input_ids"][:LONGEST]
    logprobs = model.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    total = sum(logprobs[place, token].item() for place, token in enumerate(ids[1:]))
    assert essence(WeightEditedModel(model), model, [text.strip()]) == pytest.approx(
        np.exp(-total / len(ids)), rel=1e-4
    )


def test_norm_drift_is_the_growth_of_the_matrices_that_changed():
    linear = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    before = norms(linear.named_parameters())
    assert set(before) == {"0.weight", "1.weight"}
    assert norm_drift(before, norms(linear.named_parameters())) == 0
    with torch.no_grad():
        linear[1].weight *= 1.5
    assert norm_drift(before, norms(linear.named_parameters())) == pytest.approx(0.5)
    assert norm_drift(before, norms([("1.weight", linear[1].weight)])) == pytest.approx(0.5), "the others say nothing"


def test_a_model_is_measured_on_what_it_writes_about_its_subjects(tmp_path):
    model = tiny_model("llama")
    prompts = ("Björk lives in", "Björk is")
    records = (
        EditRecord("1", "Björk was born in", "Björk", "Paris", "Reykjavík", generation_prompts=prompts, relation="P19"),
        EditRecord("2", "Ice is", "Ice", "hot", "cold"),
    )
    file = tmp_path / "texts.jsonl"
    rows = [("P19", "Paris", name, f"{name} was born in Paris") for name in ("Björk", "Danielle Darrieux")]
    file.write_text("\n".join(json.dumps(dict(zip(fluency.KEYS, row, strict=True))) for row in rows), encoding="utf-8")
    edited, data = WeightEditedModel(model), Dataset(DataRef("counterfact", "", 2), records, (), ())
    found = fluency_metrics(edited, model, data, reference(str(file)).texts(), 4)
    assert set(found) == {"ngram_entropy", "consistency", "n_consistency", "essence", "n_essence", "n"}
    assert (found["n"], found["n_consistency"], found["n_essence"]) == (1, 1, 1)
    ids = model.tokenizer(prompts[0])["input_ids"]
    with torch.no_grad():
        while len(ids) < LONGEST:
            ids.append(model.model(torch.tensor([ids])).logits[0, -1].argmax().item())
    text = unicodedata.normalize("NFKD", model.tokenizer.decode(ids, skip_special_tokens=True)).replace("\n\n", " ")
    alone = Dataset(data.ref, (EditRecord("1", *[""] * 4, generation_prompts=prompts[:1]),), (), ())
    assert fluency_metrics(edited, model, alone, {}, 4)["ngram_entropy"] == pytest.approx(romes_entropy(text))
    nothing = Dataset(data.ref, records[1:], (), ())
    assert fluency_metrics(edited, model, nothing, {}, 4) == {}


def test_a_bad_file_of_references_is_one_line(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text('{"relation": "P19"}\n')
    with pytest.raises(UserError, match=r"texts.jsonl:1: not an object with relation, target, name, text"):
        reference(str(file))
    with pytest.raises(UserError, match="no such file"):
        reference(str(tmp_path / "none.jsonl"))
    assert reference("") == FluencyRef()


@pytest.mark.parametrize("then", ["other texts", "nothing"])
def test_references_that_have_changed_since_the_plan_are_refused(then, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps(dict.fromkeys(fluency.KEYS, "planned")))
    ref = reference(str(file))
    assert ref.texts() == {("planned", "planned"): [("planned", "planned")]}
    if then == "nothing":
        file.unlink()
    else:
        file.write_text(json.dumps(dict.fromkeys(fluency.KEYS, then)))
    with pytest.raises(UserError, match=r"texts\.jsonl: has changed since the run was planned"):
        ref.texts()
