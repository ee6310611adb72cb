"""Two tokenizers in step: what a row spells, and that the plug-in has read exactly that."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE

from harness.tokens import Query, joint_query
from methods.onceedit.plugin import EditedPlugin
from methods.onceedit.sync import AnchorMap, Companion, Transcript, Written
from methods.onceedit.vocabulary import Vocabulary
from tests.helpers.tiny_models import ARCHITECTURES, SENTENCES, tiny_model, tiny_tokenizer

PROMPTS = ("The mother tongue of Danielle Darrieux is", "東京 is the capital of", "Björk was born in")


def edited(architecture):
    """A tiny model as a plug-in; its last entry stands in for `[WEIGHT]`."""
    loaded = tiny_model(architecture)
    loaded.model.double()
    return EditedPlugin(loaded.model, loaded.tokenizer, loaded.model.config.vocab_size - 1, (), {})


def transcript(architecture, prompt):
    tokenizer = tiny_tokenizer(architecture)
    return Transcript(Vocabulary.of(tokenizer), joint_query(tokenizer, prompt, "France"), starts_at_prompt=True)


def letters(tokenizer, text):
    """A text in its smallest tokens, bytes where the tokenizer has them."""
    return [tokenizer.convert_tokens_to_ids(letter) for token in tokenizer.tokenize(text) for letter in token]


def test_a_transcript_holds_back_a_character_until_it_is_complete():
    tokenizer = tiny_tokenizer("gptj")
    ids = [tokenizer.convert_tokens_to_ids(letter) for letter in "ĠæĹ¥"]
    prompt = "東京 is the capital of"
    written = [transcript("gptj", prompt).after(ids[:n]) for n in range(5)]
    assert [text.removeprefix(prompt) for text, _ in written] == ["", " ", " ", " ", " 日"]
    assert [is_inside for _, is_inside in written] == [False, False, True, True, False]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_prompt_cut_by_joint_tokenisation_is_spelled_from_its_ids(architecture):
    """The target's first id may begin before the prompt ends; the plug-in then reads what stands in front of it."""
    tokenizer = tiny_tokenizer(architecture)
    ids = tuple(tokenizer("Björk was born in Reykjavík")["input_ids"])
    prompt = tuple(tokenizer("Björk was born")["input_ids"])
    query = Query("Björk was born in", "Reykjavík", prompt, ids[len(prompt) :])
    cut = Transcript(Vocabulary.of(tokenizer), query, starts_at_prompt=False)
    assert cut.after(()) == Written("Björk was born", False)
    assert cut.after(query.target_ids) == Written("Björk was born in Reykjavík", False)


def test_one_more_letter_may_change_the_first_id():
    """So no place in a text is safe to tokenise on from, whatever the tokenizer: here merges pair from the right."""
    alphabet = "abcdefghij"
    pairs = [alphabet[n : n + 2] for n in range(9)]
    vocabulary = {token: n for n, token in enumerate([*alphabet, *pairs])}
    backend = Tokenizer(BPE(vocabulary, [(pair[0], pair[1]) for pair in reversed(pairs)]))
    assert backend.encode("abcdefgh").tokens == ["ab", "cd", "ef", "gh"]
    assert backend.encode("abcdefghi").tokens == ["a", "bc", "de", "fg", "hi"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("of_plugin", ARCHITECTURES)
@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_the_plugin_has_read_the_text_in_its_own_ids_after_every_step(architecture, of_plugin, data):
    """Whatever the target says, bytes inside characters included, and whichever rows are given up on the way."""
    plugin, n_ids = edited(of_plugin), len(tiny_tokenizer(architecture))
    transcripts = [transcript(architecture, prompt) for prompt in PROMPTS]
    companion, said = Companion(plugin, len(PROMPTS)), [[] for _ in PROMPTS]
    rows = list(range(len(PROMPTS)))
    for _ in range(4):
        written = {row: transcripts[row].after(said[row]) for row in rows}
        reading = companion.read(written)
        texts = [written[row].text for row in rows]
        assert list(companion._ids.values()) == [plugin.tokenizer(text)["input_ids"] for text in texts]
        assert torch.allclose(reading.hidden_BD, plugin.read(texts).hidden_BD, rtol=0, atol=1e-4)
        for row in rows:
            said[row].append(data.draw(st.integers(0, n_ids - 1)))
        rows = data.draw(st.lists(st.sampled_from(rows), min_size=1, unique=True).map(sorted))


def test_a_text_written_letter_by_letter_takes_back_ids_of_the_plugin():
    plugin = edited("llama")
    first = transcript("gptj", "The Eiffel Tower is located in")
    ids = letters(tiny_tokenizer("gptj"), " Paris, the capital of France")
    companion = Companion(plugin, 1)
    for n in range(len(ids) + 1):
        companion.read({0: first.after(ids[:n])})
    assert companion._ids[0] == plugin.tokenizer(SENTENCES[4])["input_ids"]
    assert companion.n_fed > len(companion._ids[0])


def test_rows_that_are_given_up_cost_the_others_nothing():
    plugin, companion = edited("llama"), Companion(edited("llama"), 3)
    companion.read({row: Written(text, False) for row, text in enumerate(PROMPTS)})
    before = companion.n_fed
    companion.read({2: Written(PROMPTS[2] + " Paris", False)})
    grown = plugin.tokenizer(PROMPTS[2] + " Paris")["input_ids"]
    assert companion.n_fed - before == len(grown) - len(plugin.tokenizer(PROMPTS[2])["input_ids"])


def test_a_mapped_id_is_read_as_it_is_and_no_text_is_tokenised():
    plugin = edited("llama")
    companion = Companion(plugin, 2)
    start = [plugin.tokenizer(text)["input_ids"] for text in PROMPTS[:2]]
    companion.read({row: Written(text, False) for row, text in enumerate(PROMPTS[:2])})
    reading = companion.read({0: Written("whatever", False), 1: Written("France", False)}, {0: 77})
    assert list(companion._ids.values()) == [[*start[0], 77], plugin.tokenizer("France")["input_ids"]]
    logits = plugin.model(input_ids=torch.tensor([companion._ids[0]])).logits[0, -1, :-1]
    assert torch.allclose(reading.probs_BU[0, :-1], logits.softmax(-1))


def test_a_row_that_misses_bytes_of_a_character_maps_nothing_until_it_is_complete():
    companion = Companion(edited("llama"), 1)
    tokenize = tiny_tokenizer("llama")
    texts = [Written("Paris", True), Written("Paris", True), Written("Paris 日", False), Written("Paris 日 x", False)]
    held = []
    for written, mapped in zip(texts, ({}, {0: 7}, {0: 8}, {0: 9}), strict=True):
        companion.read({0: written}, mapped)
        held.append(companion._ids[0])
    paris, complete = tokenize("Paris")["input_ids"], tokenize("Paris 日")["input_ids"]
    assert held == [paris, paris, complete, [*complete, 9]]


def test_an_anchor_maps_to_its_partner_and_an_unfused_token_only_if_it_is_an_anchor():
    anchors = AnchorMap.of(torch.tensor([4, 2]), torch.tensor([10, 20]), n_tokens=6)
    tokens_B, anchors_B = torch.tensor([0, 5, 2, 3]), torch.tensor([1, 0, -1, -1])
    assert anchors.ids(tokens_B, anchors_B).tolist() == [20, 10, 20, -1]


def test_texts_along_a_row_are_read_in_one_pass_as_if_each_were_read_alone():
    plugin = edited("llama")
    companion = Companion(plugin, 3, crops=True)
    sentence, words = SENTENCES[0], SENTENCES[0].split()
    parts = [*(" ".join(words[:n]) for n in range(2, len(words))), sentence[:-3]]
    companion.read({n: Written(text, False) for n, text in enumerate((parts[0], SENTENCES[1], "Paris"))})
    found = companion.read_along({0: [Written(text, False) for text in parts], 2: []})
    assert found[2] == []
    read = [(text, reading) for text, reading in zip(parts, found[0], strict=True) if reading is not None]
    assert len(read) > 3
    for text, reading in read:
        assert torch.allclose(reading.probs_BU, plugin.read([text]).probs_BU, atol=1e-10)
    whole = plugin.tokenize(parts)[-1]
    for text, reading, ids in zip(parts, found[0], plugin.tokenize(parts), strict=True):
        assert (reading is not None) == (whole[: len(ids)] == ids), text
    after = companion.read({0: Written(sentence, False), 2: Written("Paris is", False)})
    assert torch.allclose(after.probs_BU, plugin.read([sentence, "Paris is"]).probs_BU, atol=1e-10)
