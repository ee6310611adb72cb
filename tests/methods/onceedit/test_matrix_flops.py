"""Matrix FLOPs against Table 5 to the printed digits, from the real vocabularies."""

import json

import pytest
import sentencepiece
import torch
from transformers import GPTJConfig, GPTJForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from methods.onceedit.anchors import pair_anchors
from methods.onceedit.flops import (
    TERA,
    EmbeddingTable,
    attach_flops,
    equivalent_tokens,
    forward_flops,
    non_embedding_parameters,
    paper_flops,
    relative_matrix_flops,
)
from methods.onceedit.vocabulary import Vocabulary

PLUGIN = EmbeddingTable(32001, 2048)
EXACT = {
    "Llama2-7B": (8_416_517, 4_222_214),
    "Mistral-7B-v0.1": (6_361_046, 3_191_070),
    "GPT-J-6B": (7_386_415, 2_352_697),
}
"""Megaflops of the target's and the plug-in's matrix."""


def vocabulary(shared, model):
    if model == "GPT-J-6B":
        ids = json.loads((shared / "tokenizers/gpt2/encoder.json").read_text())
        return Vocabulary(ids | {f"<|extratoken_{n}|>": len(ids) + n - 1 for n in range(1, 144)}, byte_level=True)
    path = {"Llama2-7B": "llama2/tokenizer.model", "Mistral-7B-v0.1": "mistral-v1/tokenizer.model.v1"}[model]
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(shared / "tokenizers" / path))
    return Vocabulary({pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}, byte_level=False)


def empty_model(model):
    with torch.device("meta"):
        if model == "Llama2-7B":
            return LlamaForCausalLM(LlamaConfig())
        if model == "Mistral-7B-v0.1":
            return MistralForCausalLM(MistralConfig())
        return GPTJForCausalLM(GPTJConfig())


@pytest.mark.parametrize("model", EXACT)
def test_table_5_comes_out_to_its_digits(shared, model):
    printed = json.loads((shared / "paper/onceedit_tables.json").read_text())["flops_table5"]
    row = next(row for row in printed if row["model"] == model)
    llm_vocabulary, llama = vocabulary(shared, model), vocabulary(shared, "Llama2-7B")
    plugin_vocabulary = Vocabulary({**llama.ids, "[WEIGHT]": 32000}, byte_level=False)
    anchors, llm = len(pair_anchors(llm_vocabulary, plugin_vocabulary)), EmbeddingTable(len(llm_vocabulary.ids), 4096)
    parameters = non_embedding_parameters(empty_model(model))

    matrices = relative_matrix_flops(llm, anchors), relative_matrix_flops(PLUGIN, anchors)
    assert tuple(round(flops / 10**6) for flops in matrices) == EXACT[model]
    assert attach_flops(llm, PLUGIN, anchors) == sum(matrices)
    assert sum(matrices) // 10**9 == round(row["tflops_all"] * 1000)
    assert round(forward_flops(parameters) / TERA, 3) == row["tflops_per_token"]
    assert equivalent_tokens(llm, PLUGIN, anchors, parameters) == row["num_tokens"]
    few = 1000
    assert equivalent_tokens(llm, PLUGIN, anchors, few) == -(-attach_flops(llm, PLUGIN, anchors) // (2 * few))
    with torch.device("meta"):
        plugin = LlamaForCausalLM(LlamaConfig(vocab_size=32001, hidden_size=2048, num_hidden_layers=1))
    assert paper_flops(empty_model(model), plugin, anchors) == {
        "attach": sum(matrices),
        "per_token": forward_flops(parameters),
        "attach_in_tokens": row["num_tokens"],
    }


def test_tied_embeddings_are_left_out_once():
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    assert non_embedding_parameters(model) == 4 * 8 * 8 + 3 * 8 * 12 + 3 * 8
