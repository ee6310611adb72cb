"""Context lengths and token counts that are known without loading a model."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from harness.models.catalogue import ModelRef, entry
from harness.models.context_length import most_tokens, reader
from tests.helpers.real_tokenizers import real_tokenizer, write_tokenizer


def checkpoint(folder, **config):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gptj", **config}))
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_truncation(3)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"n_positions": 77}, 77),
        ({"max_position_embeddings": 99, "sliding_window": 8}, 99),
        ({"text_config": {"max_position_embeddings": 88}}, 88),
        (
            {
                "max_position_embeddings": 99,
                "original_max_position_embeddings": 33,
                "rope_scaling": {"type": "longrope"},
            },
            33,
        ),
        ({"max_position_embeddings": 99, "rope_parameters": {"rope_type": "yarn"}}, 99),
        ({}, entry("gpt-j-6b").spec.max_positions),
    ],
)
def test_the_configuration_has_the_context_length_and_a_sliding_window_does_not_limit_it(tmp_path, config, positions):
    ref = ModelRef("gpt-j-6b", "pretrained", str(checkpoint(tmp_path / "model", **config)))

    assert reader(ref).positions == positions


@pytest.mark.parametrize(("name", "expected"), [("gpt-j-6b", [5, 1]), ("llama2-7b", [6, 2])])
def test_all_tokens_are_counted_and_a_start_of_text_where_the_model_has_one(tmp_path, name, expected):
    count = reader(ModelRef(name, "pretrained", str(checkpoint(tmp_path / name)))).count

    assert count is not None
    assert count(["a b c d e", "f"]) == expected


def test_a_model_that_is_not_here_yet_has_the_catalogues_length_and_no_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = reader(ModelRef("gpt-j-6b", "pretrained", "EleutherAI/not-here"))

    assert (found.positions, found.count) == (2048, None)


def test_a_model_that_is_yet_to_be_trained_counts_bytes(tmp_path):
    found = reader(ModelRef("tiny/llama", "trained"))

    assert (found.positions, found.is_exact) == (256, False)
    assert found.count is not None
    assert found.count(["Zoë is"]) == [8]


@given(st.text(max_size=40))
def test_no_normalisation_makes_a_text_longer_than_its_bound(text):
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert len(unicodedata.normalize(form, text).encode()) + 2 <= most_tokens(text)


def test_the_longest_expansion_is_within_the_bound():
    assert (
        max(
            len(unicodedata.normalize("NFKC", chr(code)).encode()) / len(chr(code).encode())
            for code in range(0x110000)
            if not 0xD800 <= code < 0xE000
        )
        <= 11
    )


@pytest.mark.parametrize("tokenizer", ["llama2", "gpt2"])
def test_tokenizers_in_older_files_are_counted_too(tmp_path, shared, tokenizer):
    name = {"llama2": "llama2-7b", "gpt2": "gpt-j-6b"}[tokenizer]
    folder = tmp_path / name
    write_tokenizer(tokenizer, shared, folder)
    (folder / "config.json").write_text("{}")
    texts = ["The mother tongue of Danielle Darrieux is English", "東京 ½ ﷺ"]

    counted = reader(ModelRef(name, "pretrained", str(folder))).count(texts)

    assert counted == [len(real_tokenizer(tokenizer, shared, folder)(text)["input_ids"]) for text in texts]
    assert all(tokens <= most_tokens(text) for text, tokens in zip(texts, counted, strict=True))
