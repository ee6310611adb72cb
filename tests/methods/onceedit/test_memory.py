"""Alpha from the similarity to the edited prompts, against one cosine at a time."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from harness.records import EditRequest
from methods.onceedit.memory import Gate, remember
from methods.onceedit.plugin import EditedPlugin
from tests.helpers.slow_similarity import similarity
from tests.helpers.tiny_onceedit import EDITS, UNRELATED, hparams_with

SUBJECTS = ("Danielle Darrieux", "Côte d'Ivoire", "", "東京")
EDITED = [(prompt, subject) for (prompt, _), subject in zip(EDITS, SUBJECTS, strict=True)]
REQUESTS = [EditRequest(str(n), prompt, subject, "x", "") for n, (prompt, subject) in enumerate(EDITED)]
PROMPTS = [
    *(prompt for prompt, _ in EDITED),
    "It was cold. The mother tongue of Danielle Darrieux is",
    "The mother tongue of Björk is",
    *(prompt for pair in UNRELATED for prompt in pair),
]


@pytest.fixture(scope="module")
def plugin(plugin_folder):
    return replace(EditedPlugin.load(plugin_folder, "cpu"), requests=tuple(REQUESTS))


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_similarity_is_that_to_the_nearest_edit_and_the_subject_has_its_share(plugin, share):
    memory = remember(plugin, share)
    found = [memory.similarity(prompt) for prompt in PROMPTS]
    assert found == pytest.approx([similarity(plugin, EDITED, prompt, share) for prompt in PROMPTS], abs=1e-5)


def test_an_edit_is_as_similar_as_can_be_also_behind_another_sentence(plugin):
    memory = remember(plugin, 0.7)
    for prompt, _ in EDITED:
        assert memory.similarity(prompt) == pytest.approx(1.0)
        assert memory.similarity(f"It was cold. {prompt}") == pytest.approx(1.0)


def test_another_subject_is_further_away_the_larger_the_share_of_the_subject(plugin):
    far, near = (remember(replace(plugin, requests=plugin.requests[:1]), share) for share in (0.9, 0.1))
    assert far.similarity("The mother tongue of Björk is") < near.similarity("The mother tongue of Björk is") < 1


def test_a_prompt_without_its_subject_has_tokens_of_equal_weight(plugin):
    elsewhere = EditRequest("0", "Björk was born in", "Guðmundsdóttir", "x", "")
    without = remember(replace(plugin, requests=(elsewhere,)), 0.9)
    assert without.shares_K.tolist() == pytest.approx([1 / len(without.shares_K)] * len(without.shares_K))


def test_alpha_is_the_logistic_of_similarity(plugin):
    changes = {"similarity_threshold": 0.7, "similarity_slope": 30.0, "similarity_subject": 0.6}
    alpha_N = Gate(hparams_with(alpha="similarity", **changes), plugin).alpha(PROMPTS, torch.zeros(len(PROMPTS)))
    expected = [1 / (1 + math.exp(-30 * (similarity(plugin, EDITED, prompt, 0.6) - 0.7))) for prompt in PROMPTS]
    assert alpha_N.tolist() == pytest.approx(expected, abs=1e-4)


def test_both_is_the_larger_alpha(plugin):
    learned_N = torch.linspace(0, 1, len(PROMPTS))
    similar_N, both_N = (
        Gate(hparams_with(alpha=alpha), plugin).alpha(PROMPTS, learned_N) for alpha in ("similarity", "both")
    )
    assert both_N.tolist() == [max(pair) for pair in zip(similar_N.tolist(), learned_N.tolist(), strict=True)]
    assert (both_N > similar_N).any()
    assert (both_N > learned_N).any()


@pytest.mark.parametrize("alpha", ["learned", "fixed"])
def test_without_similarity_alpha_is_the_learned_one(plugin, alpha):
    learned_N = torch.linspace(0, 1, len(PROMPTS))
    assert Gate(hparams_with(alpha=alpha), plugin).alpha(PROMPTS, learned_N).equal(learned_N)


def test_similarity_belongs_to_a_prompt_and_has_no_value_at_every_step():
    with pytest.raises(ValidationError, match="per_step_alpha"):
        hparams_with(alpha="similarity", per_step_alpha=True)


def test_the_identity_has_values_of_similarity_only_where_alpha_depends_on_them():
    def identities(alpha):
        return [hparams_with(alpha=alpha, similarity_slope=slope).identity() for slope in (10.0, 20.0)]

    learned, similar = identities("learned"), identities("similarity")
    assert learned[0] == learned[1]
    assert similar[0] != similar[1]


def test_similarity_of_bf16_embeddings_is_that_of_their_values_in_fp32(plugin):
    """A half-precision cosine is a multiple of 2⁻⁸, and with a slope of 100 alpha would jump from one to the next."""
    half = replace(plugin, model=copy.deepcopy(plugin.model).bfloat16())
    widened = replace(plugin, model=copy.deepcopy(half.model).float())
    found, exact = ([remember(each, 0.67).similarity(prompt) for prompt in PROMPTS] for each in (half, widened))
    assert found == exact
