"""One decoding step: the mixture, the rules under which the model's own token is taken, and what is counted."""

import pytest
import torch

from methods.onceedit.choose import AnchorChooser
from methods.onceedit.decoders import OwnerDecoder, SearchDecoder
from methods.onceedit.fusion import Projection
from methods.onceedit.relative import RelativeState


@pytest.fixture
def chooser():
    projection = Projection(RelativeState.build(torch.eye(4), [0, 1, 2], "deepen"))
    return AnchorChooser(projection, projection, OwnerDecoder())


LLM = torch.eye(4)[[0, 0, 3]] * 9
PLUGIN = torch.eye(4)[[1, 1, 1]]


def test_the_plugin_wins_where_alpha_is_high_and_the_model_where_it_is_low(chooser):
    chosen = chooser.choose(LLM[:2], PLUGIN[:2], torch.tensor([0.9, 0.1]))
    assert chosen.tokens_B.tolist() == [1, 0]
    assert chosen.anchors_B.tolist() == [1, 0]
    figures = chooser.tally.diagnostics()
    assert (figures["fused_share"], figures["gated_share"], figures["ended_share"]) == (1.0, 0.0, 0.0)


def test_below_the_gate_the_models_own_token_is_taken_even_if_it_owns_no_anchor(chooser):
    alpha = torch.tensor([0.9, 0.1, 0.0])
    assert chooser.choose(LLM, PLUGIN, alpha).tokens_B.tolist()[2] != 3
    chooser.gate = 0.5
    chosen = chooser.choose(LLM, PLUGIN, alpha)
    assert chosen.tokens_B.tolist() == [1, 0, 3]
    assert chosen.anchors_B.tolist() == [1, -1, -1]
    assert chooser.tally.diagnostics()["gated_share"] == pytest.approx(2 / 6)


def test_the_models_own_end_of_text_is_taken_whatever_the_plugin_says(chooser):
    chooser.eos_id = 3
    assert chooser.choose(LLM, PLUGIN, torch.ones(3)).tokens_B.tolist() == [1, 1, 3]
    assert chooser.tally.diagnostics()["ended_share"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("decoder", [OwnerDecoder(), SearchDecoder()])
def test_where_the_plugin_moves_nothing_the_models_own_token_may_be_kept(chooser, decoder):
    """Token 3 is no anchor: every detour loses it."""
    chooser.decoder = decoder
    without = chooser.choose(LLM[2:], PLUGIN[2:], torch.zeros(1))
    assert without.tokens_B.tolist() != [3]
    chooser.keep_own = True
    assert chooser.choose(LLM[2:], PLUGIN[2:], torch.zeros(1)).tokens_B.tolist() == [3]
    assert chooser.choose(LLM, PLUGIN, torch.ones(3)).tokens_B.tolist() == [1, 1, 1]


def test_levels_and_margins_are_counted_over_the_fused_steps_only(chooser):
    assert chooser.tally.diagnostics() == {}
    chooser.gate = 0.5
    chooser.choose(LLM, PLUGIN, torch.tensor([0.9, 0.8, 0.0]))
    figures = chooser.tally.diagnostics()
    shares = [figures[f"certified_l{level}_share"] for level in (0, 1, 2)]
    assert sum(shares) == pytest.approx(1.0)
    assert 0 < figures["margin_least"] <= figures["margin_mean"] <= 1
    assert chooser.tally.steps == 3


def test_a_search_over_the_whole_distribution_has_no_levels(chooser):
    chooser.decoder = SearchDecoder()
    chooser.choose(LLM, PLUGIN, torch.ones(3))
    assert not [name for name in chooser.tally.diagnostics() if "certified" in name or "margin" in name]
