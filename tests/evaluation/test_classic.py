"""ES, PS and NS against ROME's way of computing them: one text at a time, negative log-likelihoods token by token."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.api import EditedModel
from harness.errors import UserError
from harness.evaluation.classic import classic_metrics, duels
from harness.models.edited import WeightEditedModel
from harness.records import DataRef, Dataset, EditRecord, Probe
from harness.tokens import joint_query
from tests.helpers.tiny_models import tiny_model


def record(name, subject, new, true):
    return EditRecord(
        id=name,
        prompt=f"{subject} was born in",
        subject=subject,
        target_new=new,
        ground_truth=true,
        rephrases=(f"Where was {subject} born?", f"The home of {subject} is"),
        locality=tuple(Probe(f"{other} was born in", true) for other in ("Paris", "Danielle Darrieux")),
    )


RECORDS = (
    record("1", "Björk", "Paris, France", "Reykjavík"),
    record("2", "Yamoussoukro", "Iceland", "the Eiffel Tower"),
    EditRecord("3", "東京 is the capital of", "東京", "France", ""),
)
DATA = Dataset(DataRef("counterfact", "", 3), RECORDS, (), ())


@torch.no_grad()
def rome_nll(model, prompt, target):
    """`test_batch_prediction` of ROME's evaluation for one text: the mean over the target's tokens."""
    query = joint_query(model.tokenizer, prompt, target)
    logits = model.model(input_ids=torch.tensor([[*query.prompt_ids, *query.target_ids]])).logits[0]
    total = 0.0
    for place, token in enumerate(query.target_ids):
        total += -torch.nn.functional.log_softmax(logits[len(query.prompt_ids) + place - 1], dim=0)[token].item()
    return total / len(query.target_ids)


def rome_metrics(model):
    """`summarize.py` of ROME: success and difference of probabilities per case, then the mean over cases."""
    cases = {"ES": [], "PS": [], "NS": [], "EM": [], "PM": [], "NM": []}
    for one in RECORDS[:2]:
        new, true = one.target_new, one.ground_truth
        groups = {"E": [one.prompt], "P": one.rephrases, "N": [probe.prompt for probe in one.locality]}
        for key, prompts in groups.items():
            pairs = [(rome_nll(model, prompt, new), rome_nll(model, prompt, true)) for prompt in prompts]
            sign = -1 if key == "N" else 1
            cases[f"{key}S"].append(np.mean([(b > a) if key != "N" else (b < a) for a, b in pairs]))
            cases[f"{key}M"].append(np.mean([sign * (np.exp(-a) - np.exp(-b)) for a, b in pairs]))
    return {key: float(np.mean(values)) for key, values in cases.items()}


@pytest.mark.parametrize("architecture", ["llama", "gptj"])
def test_success_and_magnitude_equal_those_of_romes_code(architecture):
    model = tiny_model(architecture)
    found = classic_metrics(duels(WeightEditedModel(model), DATA, model.tokenizer, batch_size=4))
    wanted = rome_metrics(model)
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, abs=1e-5)
    assert found["n"] == 2, "a record without an original answer is left out"
    success = [wanted["ES"], wanted["PS"], wanted["NS"]]
    assert found["S"] == pytest.approx(3 / sum(1 / value for value in success) if all(success) else 0.0)


def test_only_questions_with_the_edits_original_answer_are_neighbours():
    """Other locality questions, such as ZsRE's, are answered by neither target."""
    model, far = tiny_model("llama"), Probe("Ice is", "cold")
    with_far = [replace(one, locality=(*one.locality, far)) for one in RECORDS]
    only_far = [replace(one, locality=(far,)) for one in RECORDS]
    of = [
        classic_metrics(duels(WeightEditedModel(model), replace(DATA, edits=tuple(edits)), model.tokenizer, 4))
        for edits in (RECORDS, with_far, only_far)
    ]
    assert of[0] == pytest.approx(of[1])
    assert {"NS", "NM", "S"}.isdisjoint(of[2])


def test_a_model_without_probabilities_says_so():
    class Silent(EditedModel):
        def teacher_forced(self, queries):
            raise NotImplementedError

        def generate(self, queries):
            raise NotImplementedError

    with pytest.raises(UserError, match="without giving them probabilities"):
        duels(Silent(), DATA, tiny_model("llama").tokenizer, 4)
