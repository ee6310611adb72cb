"""GGUF files, written by the test with llama.cpp's own package."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.identity import file_digest
from harness.models import gguf
from tests.helpers.tiny_gguf import write_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_gguf(tmp_path_factory.mktemp("gguf") / "two-blocks.gguf")


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
