"""Anchor maps, against the counts of the paper and by hand."""

import json

import pytest
import sentencepiece

from methods.onceedit.anchors import pair_anchors
from methods.onceedit.vocabulary import Vocabulary


def of_sentencepiece(path, *added):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokens = [pieces.id_to_piece(i) for i in range(pieces.get_piece_size())] + list(added)
    special = frozenset(token for i, token in enumerate(tokens[: -len(added) or None]) if pieces.is_control(i)) | {
        "<unk>"
    }
    return Vocabulary({token: i for i, token in enumerate(tokens)}, False, special, {"unk": 0, "bos": 1, "eos": 2})


@pytest.fixture(scope="module")
def plugin(shared):
    return of_sentencepiece(shared / "tokenizers/llama2/tokenizer.model", "[WEIGHT]")


@pytest.fixture(scope="module")
def gptj(shared):
    ids = json.loads((shared / "tokenizers/gpt2/encoder.json").read_text())
    ids |= {f"<|extratoken_{n}|>": len(ids) + n - 1 for n in range(1, 144)}
    end = ids["<|endoftext|>"]
    return Vocabulary(ids, True, frozenset({"<|endoftext|>"}), {"unk": end, "bos": end, "eos": end})


def test_llama2_shares_all_but_one_string_with_the_plugin(shared, plugin):
    llama = of_sentencepiece(shared / "tokenizers/llama2/tokenizer.model")
    anchors = pair_anchors(llama, plugin)
    assert (len(llama.ids), len(plugin.ids), len(anchors)) == (32000, 32001, 31999)


def test_mistral_has_the_anchors_of_table_9(shared, plugin):
    assert len(pair_anchors(of_sentencepiece(shared / "tokenizers/mistral-v1/tokenizer.model.v1"), plugin)) == 24184


def test_gptj_has_the_anchors_of_table_9(gptj, plugin):
    assert (len(gptj.ids), len(pair_anchors(gptj, plugin))) == (50400, 17830)


def test_the_bytes_rule_has_more_anchors_and_no_false_friends(gptj, plugin):
    def spelled(vocabulary, ids):
        token_of = {i: token for token, i in vocabulary.ids.items()}
        return [vocabulary.token_bytes(token_of[i]) for i in ids]

    def false_friends(anchors):
        pairs = zip(spelled(gptj, anchors.llm_ids), spelled(plugin, anchors.plugin_ids), strict=True)
        return sum(left != right for left, right in pairs)

    by_string, by_bytes = pair_anchors(gptj, plugin, "deepen"), pair_anchors(gptj, plugin, "bytes")
    assert (len(by_bytes), false_friends(by_bytes)) == (18207, 0)
    assert false_friends(by_string) == 144


def test_of_two_strings_that_the_rule_merges_the_space_is_kept(plugin):
    assert plugin.ids["▁"] == 29871
    assert plugin.ids["Ġ"] == 31937
    anchors = pair_anchors(plugin, plugin)
    assert 29871 in anchors.llm_ids
    assert 31937 not in anchors.llm_ids


def test_anchors_come_in_sorted_order_of_their_strings():
    left = Vocabulary({"Ġb": 0, "a": 1, "Ġa": 2}, True)
    right = Vocabulary({"▁a": 5, "▁b": 6, "a": 7, "c": 8}, False)
    anchors = pair_anchors(left, right)
    assert anchors.llm_ids == (1, 2, 0)
    assert anchors.plugin_ids == (7, 5, 6)


def test_a_byte_piece_yields_to_the_token_of_ordinary_text():
    left = Vocabulary({"A": 0}, True)
    right = Vocabulary({"<0x41>": 3, "A": 9}, False)
    assert pair_anchors(left, right, "bytes").plugin_ids == (9,)


def test_end_of_text_is_an_anchor_by_role_only_when_asked_for(gptj, plugin):
    end = gptj.ids["<|endoftext|>"]
    assert end not in pair_anchors(gptj, plugin).llm_ids
    paired = pair_anchors(gptj, plugin, pair_special=True)
    assert len(paired) == 17831
    assert (paired.llm_ids[-1], paired.plugin_ids[-1]) == (end, plugin.ids["</s>"])


def test_vocabularies_without_a_common_token_are_refused():
    with pytest.raises(ValueError, match="share no token"):
        pair_anchors(Vocabulary({"a": 0}, False), Vocabulary({"b": 0}, False))


def test_a_share_of_the_anchors_is_the_same_in_every_pair_and_part_of_a_larger_share():
    names = [chr(code) for code in range(97, 123)]
    left = Vocabulary({name: number for number, name in enumerate(names)}, False)
    right = Vocabulary({name: 100 - number for number, name in enumerate(names)}, False)
    quarter, half = (pair_anchors(left, right, share=share) for share in (0.25, 0.5))
    assert (len(quarter), len(half), len(pair_anchors(left, right))) == (6, 13, 26)
    assert set(quarter.llm_ids) < set(half.llm_ids)
    assert pair_anchors(right, left, share=0.25).plugin_ids == quarter.llm_ids
    assert all(100 - left_id == right_id for left_id, right_id in zip(quarter.llm_ids, quarter.plugin_ids, strict=True))
