"""How often the host waits for the device while tokens are decoded: a GPU is idle meanwhile."""

import pytest
import torch

from harness.tokens import Query
from methods.onceedit.answers import Answers
from methods.onceedit.ensemble import EnsembleModel
from methods.onceedit.speculative import Speculation
from methods.onceedit.stepwise import Stepwise
from tests.helpers.host_round_trips import host_round_trips
from tests.helpers.tiny_models import ARCHITECTURES, tiny_model
from tests.helpers.tiny_onceedit import EDITS, hparams_with

STEPS = 8


def pair_and_queries(target, plugin, requests, **changes):
    """A pair, what it is asked, and its two base models."""
    pair = EnsembleModel.attach(target, plugin, hparams_with(**changes))
    queries = [Query(prompt, "", tuple(target.tokenizer(prompt)["input_ids"]), (0,) * STEPS) for prompt, _ in EDITS]
    return pair, queries, (target.model.base_model, plugin.model.base_model)


@pytest.mark.parametrize("changes", [{}, {"decoder": "column", "relative": "whitened"}, {"alpha_gate": 0.5}])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_of_a_batch_waits_for_the_certificate_and_for_the_tokens(architecture, plugin, requests, changes):
    pair, queries, models = pair_and_queries(tiny_model(architecture), plugin, requests, **changes)
    answers = Answers(queries)
    stepwise = Stepwise(pair, queries, answers)
    for step in range(STEPS):
        with host_round_trips(*models) as found:
            tokens = stepwise.tokens(step)
        lookup = ["nonzero"] if changes.get("decoder") == "column" else []
        assert found == ["nonzero", *lookup, "tolist"]
        for row, (token, is_changed) in tokens.items():
            answers.add(row, token, is_changed=is_changed)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_block_waits_for_each_draft_and_three_times_to_decide_all_its_tokens(architecture, plugin, requests):
    pair, queries, models = pair_and_queries(tiny_model(architecture), plugin, requests)
    _ = pair.proposer  # built once per pair
    speculation, passes = Speculation(pair, queries[:1], Answers(queries[:1]), drafts=3), []
    hook = plugin.model.base_model.register_forward_hook(lambda *_: passes.append(1))
    with host_round_trips(*models) as found:
        speculation.run()
    hook.remove()
    blocks = speculation.counts["blocks"]
    assert speculation.counts["settled"] == 0
    assert found.count("nonzero") <= blocks
    assert len(found) <= len(passes) + 3 * blocks


def test_a_round_trip_is_counted_whichever_way_it_is_made():
    values, mask = torch.arange(3.0), torch.tensor([True, False, True])
    with host_round_trips() as found:
        for read in (values.sum().item, values.tolist, values.cpu, values.nonzero, lambda: values[mask]):
            read()
        bool(mask.any())
        values.unique()
    assert found == ["_local_scalar_dense", "tolist", "cpu", "nonzero", "index", "_local_scalar_dense", "_unique2"]
