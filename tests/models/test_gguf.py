"""GGUF files, written by the test with llama.cpp's own package."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.errors import UserError
from harness.identity import file_digest
from harness.models import gguf
from tests.helpers.tiny_gguf import FFN, HIDDEN, LAYERS, VOCAB, write_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "two-blocks.gguf")


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
