"""GGUF files, written by the test with llama.cpp's own package."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.errors import UserError
from harness.identity import file_digest
from harness.models import gguf

HIDDEN, FFN, HEADS, LAYERS, VOCAB = 32, 64, 4, 2, 300


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A Llama of two blocks with random weights, in float32, and a byte-level tokenizer with one merge."""
    from gguf import GGUFWriter
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    path = tmp_path_factory.mktemp("gguf") / "two-blocks.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(VOCAB)
    letters = list(bytes_to_unicode().values())
    tokens = ["<unk>", "<s>", "</s>", *letters, "ab"]
    tokens += [f"<extra_{index}>" for index in range(VOCAB - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(letters) + 1) + [4] * (VOCAB - 4 - len(letters)))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    rng = np.random.default_rng(0)

    def tensor(name, *shape):
        writer.add_tensor(name, rng.normal(0, 0.05, shape).astype(np.float32))

    tensor("token_embd.weight", VOCAB, HIDDEN)
    tensor("output.weight", VOCAB, HIDDEN)
    tensor("output_norm.weight", HIDDEN)
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            tensor(f"blk.{layer}.{name}.weight", HIDDEN, HIDDEN)
        tensor(f"blk.{layer}.ffn_gate.weight", FFN, HIDDEN)
        tensor(f"blk.{layer}.ffn_up.weight", FFN, HIDDEN)
        tensor(f"blk.{layer}.ffn_down.weight", HIDDEN, FFN)
        tensor(f"blk.{layer}.attn_norm.weight", HIDDEN)
        tensor(f"blk.{layer}.ffn_norm.weight", HIDDEN)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_header_tells_shape_vocabulary_and_precision_without_the_tensors(file):
    header = gguf.read_header(file)
    assert header.architecture == "llama"
    assert header.values["llama.block_count"] == LAYERS
    assert header.vocab == VOCAB
    assert header.quantisation == {"F32": 3 + 9 * LAYERS}
    assert header.parameters == 2 * VOCAB * HIDDEN + HIDDEN + LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * FFN + 2 * HIDDEN)


def test_the_conversion_is_a_folder_that_loads_without_gguf_and_gives_the_same_logits(file, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = gguf.converted(file, file_digest(file))
    assert folder == gguf.cached(file_digest(file))
    assert sorted(each.name for each in folder.glob("*.safetensors")) == ["model.safetensors"]
    assert "quantization_config" not in (folder / "config.json").read_text()

    direct = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = AutoTokenizer.from_pretrained(folder)("a cat, ab", return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(ours(**text).logits, direct(**text).logits)

    written = (folder / "config.json").stat().st_mtime_ns
    assert gguf.converted(file, file_digest(file)) == folder
    assert (folder / "config.json").stat().st_mtime_ns == written, "converted once"


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model" * 100])
def test_a_file_that_is_no_gguf_is_one_line(tmp_path, content):
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.gguf is truncated or not a GGUF file"):
        gguf.read_header(path)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"gone\.gguf: no such file"):
        gguf.read_header(tmp_path / "gone.gguf")
