"""One decoding step: the mixture, the gate, the end of text, and what is counted."""

import pytest
import torch

from methods.onceedit.choose import TokenChooser
from methods.onceedit.decoders import OwnerDecoder
from methods.onceedit.relative import RelativeState


@pytest.fixture
def chooser():
    state = RelativeState.build(torch.eye(4), [0, 1, 2], "deepen")
    return TokenChooser(state, state, OwnerDecoder(state), gate=0.0, eos_id=None)


LLM = torch.eye(4)[[0, 0, 3]] * 9
PLUGIN = torch.eye(4)[[1, 1, 1]]


def test_the_plugin_wins_where_alpha_is_high_and_the_model_where_it_is_low(chooser):
    assert chooser.choose(LLM[:2], PLUGIN[:2], torch.tensor([0.9, 0.1])).tolist() == [1, 0]
    assert chooser.tally == {"steps": 2, "gated": 0, "ended": 0, "fused": 2, "round_trips": 2}


def test_below_the_gate_the_models_own_token_is_taken_even_if_it_owns_no_anchor(chooser):
    assert chooser.choose(LLM, PLUGIN, torch.tensor([0.9, 0.1, 0.0])).tolist()[2] != 3
    chooser.gate = 0.5
    chooser.tally.clear()
    assert chooser.choose(LLM, PLUGIN, torch.tensor([0.9, 0.1, 0.0])).tolist() == [1, 0, 3]
    assert chooser.tally == {"steps": 3, "gated": 2, "ended": 0, "fused": 1, "round_trips": 1}


def test_the_models_own_end_of_text_is_taken_whatever_the_plugin_says(chooser):
    chooser.eos_id = 3
    assert chooser.choose(LLM, PLUGIN, torch.ones(3)).tolist() == [1, 1, 3]
    assert chooser.tally["ended"] == 1


def test_a_round_trip_is_lost_where_the_models_token_owns_nothing(chooser):
    chooser.choose(LLM[2:], PLUGIN[2:], torch.zeros(1))
    assert chooser.tally == {"steps": 1, "gated": 0, "ended": 0, "fused": 1, "round_trips": 0}
