"""Tokens as bytes, and texts that end inside a character."""

import copy

import pytest
import sentencepiece
from tokenizers.pre_tokenizers import ByteLevel

from methods.onceedit.vocabulary import Vocabulary, readable
from tests.helpers.real_tokenizers import NAMES, real_tokenizer
from tests.helpers.tiny_models import ARCHITECTURES, SENTENCES, tiny_tokenizer


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("text", SENTENCES)
def test_ids_spell_the_text_they_came_from(architecture, text):
    tokenizer = tiny_tokenizer(architecture)
    vocabulary = Vocabulary.of(tokenizer)
    assert vocabulary.byte_level == (architecture == "gptj")
    assert vocabulary.spell_from_start(tokenizer(text)["input_ids"], text) == text.encode()


@pytest.mark.parametrize("text", ["a cat", " a cat"])
def test_the_space_that_a_byte_level_tokenizer_inserts_is_not_part_of_the_text(text):
    tokenizer = copy.deepcopy(tiny_tokenizer("gptj"))
    tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    ids = tokenizer(text)["input_ids"]
    vocabulary = Vocabulary.of(tokenizer)
    assert vocabulary.spell(ids) == b" a cat"
    assert vocabulary.spell_from_start(ids, text) == text.encode()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", [*SENTENCES, "two  spaces ", "tab\tand\nline", "🙂 ¿qué? <0x41> ĠÃ ▁"])
def test_ids_of_the_large_models_spell_the_text_they_came_from(shared, tmp_path, name, text):
    tokenizer = real_tokenizer(name, shared, tmp_path)
    vocabulary = Vocabulary.of(tokenizer)
    spelled = vocabulary.spell_from_start(tokenizer(text)["input_ids"], text)
    assert spelled == (text if name == "gpt2" else text.replace("▁", " ")).encode()


@pytest.mark.parametrize("name", ["llama2", "mistral-v1"])
def test_a_tokenizers_vocabulary_is_that_of_its_sentencepiece_file(shared, tmp_path, name):
    path = next((shared / "tokenizers" / name).glob("tokenizer.model*"))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
    vocabulary = Vocabulary.of(real_tokenizer(name, shared, tmp_path))
    assert vocabulary.ids == {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    assert vocabulary.special == {"<s>", "</s>", "<unk>"}
    assert vocabulary.roles == {"unk": 0, "bos": 1, "eos": 2}


def test_special_tokens_and_padding_rows_add_no_text():
    vocabulary = Vocabulary({"</s>": 0, "▁a": 1}, False, frozenset({"</s>"}))
    assert vocabulary.spell([1, 0, 99, 1]) == b" a a"


def test_byte_pieces_spell_bytes_in_sentencepiece_only():
    assert Vocabulary({}, False).token_bytes("<0xC3>") == b"\xc3"
    assert Vocabulary({}, True).token_bytes("<0xC3>") == b"<0xC3>"
    assert Vocabulary({}, True).token_bytes("Ġé") == b" \xe9"


def test_an_incomplete_last_character_is_held_back():
    assert readable("Bjö".encode()) == ("Bjö", False)
    assert readable("Bjö".encode()[:-1]) == ("Bj", True)


def test_invalid_bytes_inside_a_text_do_not_hold_it_back():
    assert readable(b"a\xffb") == ("a\ufffdb", False)
