"""Fusion over the union of two vocabularies, against dictionaries from texts to probabilities."""

import pytest
import torch

from harness.tokens import joint_query
from methods.onceedit.ensemble import EnsembleModel
from methods.onceedit.plugin import EditedPlugin
from methods.onceedit.union import Tokens, UnionChooser
from methods.onceedit.vocabulary import Vocabulary
from tests.helpers.tiny_models import tiny_model
from tests.helpers.tiny_onceedit import EDITS, hparams_with

LLM = Vocabulary(
    {"▁Pa": 0, "ris": 1, "▁Rome": 2, "▁": 3, "<0x21>": 4, "</s>": 5, "▁R": 6},
    byte_level=False,
    special=frozenset({"</s>"}),
)
PLUGIN = Vocabulary(
    {"ĠParis": 0, "ĠRome": 1, "Ġ": 2, "!": 3, "<eos>": 4, "ris": 5, "ĠRo": 6, "x": 7},
    byte_level=True,
    special=frozenset({"<eos>"}),
)
V, U = 8, 9  # one logit more than there are tokens
ROWS = 200


def chooser(top=None):
    device = torch.device("cpu")
    return UnionChooser(Tokens.of(LLM, PLUGIN, V, device), Tokens.of(PLUGIN, LLM, U, device), top)


def texts(vocabulary):
    return {token: raw.decode() for token, raw in vocabulary.text_bytes.items() if raw}


def first(text, vocabulary):
    """The token of a vocabulary with the longest text that the text begins with."""
    ids = {of_token: token for token, of_token in texts(vocabulary).items()}
    return next((ids[text[:end]] for end in range(len(text), 0, -1) if text[:end] in ids), None)


def expected_token(weight_of_text, own_best):
    """The target model's token for the most probable text; its tokens without a text stand for themselves."""
    text, weight = max(weight_of_text.items(), key=lambda item: item[1])
    token, own_weight = own_best
    return token if own_weight > weight else first(text, LLM)


def gac(p_l, p_s, alpha):
    weights = {text: (1 - alpha) * p_l[token] for token, text in texts(LLM).items()}
    for token, text in texts(PLUGIN).items():
        if first(text, LLM) is not None:
            weights[text] = weights.get(text, 0.0) + alpha * p_s[token]
    without_text = [token for token in range(V) if token not in texts(LLM)]
    return expected_token(weights, max(((t, (1 - alpha) * p_l[t]) for t in without_text), key=lambda item: item[1]))


def unite(p_l, p_s, alpha, top):
    def most(p):
        return sorted(range(len(p)), key=lambda token: -p[token])[:top]

    llm, plugin = texts(LLM), texts(PLUGIN)
    union = {llm.get(token, f"own {token}"): token for token in most(p_l)}
    of_llm = {text: p_l[token] for text, token in union.items()}
    of_plugin = {
        text: p_s[other] if (other := first(text, PLUGIN)) is not None and text in llm.values() else 0.0
        for text in union
    }
    for token in most(p_s):
        own = first(plugin.get(token, ""), LLM)
        if own is not None and plugin[token] not in union:
            union[plugin[token]] = own
            of_llm[plugin[token]], of_plugin[plugin[token]] = p_l[own], p_s[token]
    sums = [sum(side.values()) for side in (of_llm, of_plugin)]
    best = max(union, key=lambda text: (1 - alpha) * of_llm[text] / sums[0] + alpha * of_plugin[text] / (sums[1] or 1))
    return union[best]


@pytest.mark.parametrize("top", [None, 1, 2, 4])
def test_the_token_is_that_of_the_most_probable_text(top):
    generator = torch.Generator().manual_seed(0)
    logits_BV, plugin_BU = (4 * torch.randn(ROWS, n, generator=generator).double() for n in (V, U))
    probs_s_BU, alpha_B = plugin_BU.softmax(dim=-1), torch.rand(ROWS, generator=generator).double()
    chosen_B = chooser(top).choose(logits_BV, probs_s_BU, alpha_B).tokens_B
    rows = zip(logits_BV.softmax(dim=-1).tolist(), probs_s_BU.tolist(), alpha_B.tolist(), strict=True)
    assert chosen_B.tolist() == [gac(*row) if top is None else unite(*row, top) for row in rows]
    assert len(set(chosen_B.tolist())) > 3


def test_what_the_target_model_lacks_is_spelt_with_its_first_token():
    of_plugin = chooser().plugin
    assert of_plugin.first_V.tolist() == [0, 2, 3, 4, -1, 1, 6, -1, -1]
    assert of_plugin.is_shared_V.tolist() == [False, True, True, True, False, True, False, False, False]


@pytest.mark.parametrize("decoder", ["gac", "unite"])
def test_an_ensemble_answers_without_relative_states_and_leaves_the_model_alone_at_alpha_0(
    decoder, plugin_folder, requests
):
    target, plugin = tiny_model("llama"), EditedPlugin.load(plugin_folder, "cpu")
    queries = [joint_query(target.tokenizer, prompt, "Paris, France") for prompt, _ in EDITS]
    unedited, edited = (
        EnsembleModel.attach(target, plugin, hparams_with(decoder=decoder, alpha="fixed", alpha_fixed=alpha))
        for alpha in (0.0, 1.0)
    )
    own = [
        target.model.generate(torch.tensor([q.prompt_ids]), max_new_tokens=len(q.target_ids), do_sample=False)
        for q in queries
    ]
    assert unedited.generate(queries) == [
        ids[0, len(q.prompt_ids) :].tolist() for ids, q in zip(own, queries, strict=True)
    ]
    assert edited.generate(queries) != unedited.generate(queries)
    assert edited.diagnostics()["shared_tokens"] > 0
