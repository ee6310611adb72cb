"""What names a checkpoint: every byte of its weights and every file that its tokenizer is read from."""

import fnmatch
import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from harness.models import hashes
from harness.models.checkpoint import READ_BY_TOKENIZERS, TOKENIZER_FILES, WEIGHT_INDEX, inspect


def write(folder, value):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    save_file({"weight": np.full((8, 8), value, dtype=np.float32)}, folder / "model.safetensors")
    return folder


def test_other_weights_of_the_same_shape_make_another_checkpoint(tmp_path):
    assert inspect(write(tmp_path / "a", 1.0)).sha256 != inspect(write(tmp_path / "b", 2.0)).sha256


def test_a_copy_is_the_same_checkpoint(tmp_path):
    assert inspect(write(tmp_path / "a", 1.0)).sha256 == inspect(write(tmp_path / "b", 1.0)).sha256


def test_a_file_that_was_written_again_is_read_again(tmp_path):
    before = inspect(write(tmp_path / "a", 1.0)).sha256
    assert inspect(write(tmp_path / "a", 2.0)).sha256 != before


@pytest.mark.parametrize(
    "name",
    [
        *TOKENIZER_FILES,
        *("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "merges.txt", "chat_template.jinja"),
        *("sentencepiece.bpe.model", "additional_chat_templates/tools.jinja"),
    ],
)
def test_another_tokenizer_makes_another_checkpoint_whichever_of_its_files_differs(name, tmp_path):
    folder = write(tmp_path / "a", 1.0)
    found = {inspect(folder).sha256}
    for content in ('{"a": 1}', '{"a": 2}'):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
        found.add(inspect(folder).sha256)
    assert len(found) == 3


@pytest.mark.parametrize("name", ["README.md", "generation_config.json", "training.json", "pytorch_model.bin"])
def test_files_that_loading_does_not_read_do_not_make_another_checkpoint(name, tmp_path):
    folder = write(tmp_path / "a", 1.0)
    before = inspect(folder).sha256
    (folder / name).write_text("{}")
    assert inspect(folder).sha256 == before


def test_the_files_of_every_tokenizer_class_count():
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

    classes = filter(
        None, map(tokenizer_class_from_name, {"LlamaTokenizer", "GPT2Tokenizer", "T5Tokenizer", "BertTokenizer"})
    )
    names = {name for cls in classes for name in cls.vocab_files_names.values()}
    assert len(names) >= 5
    assert TOKENIZER_MAPPING_NAMES
    assert not [name for name in names if not any(fnmatch.fnmatchcase(name, each) for each in READ_BY_TOKENIZERS)]


def test_one_changed_byte_in_any_shard_makes_another_checkpoint(tmp_path):
    folder = write(tmp_path / "a", 1.0)
    (folder / "model.safetensors").unlink()
    rows = np.arange(1 << 16, dtype=np.float32)
    for shard in "ab":
        save_file({shard: rows}, folder / f"model-{shard}.safetensors")
    (folder / WEIGHT_INDEX).write_text(json.dumps({"weight_map": {s: f"model-{s}.safetensors" for s in "ab"}}))
    before = inspect(folder).hashes()
    rows[12345] += 0.5
    save_file({"b": rows}, folder / "model-b.safetensors")
    after = inspect(folder).hashes()
    assert [part for part in before if before[part] != after[part]] == ["weights"]


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file that counts as large and is not new, a cache folder, and the list of files that were read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "KEPT_BYTES", 4)
    monkeypatch.setattr(hashes, "_known", {})
    read = []
    monkeypatch.setattr(hashes, "file_digest", lambda path: read.append(path) or f"{len(read):064x}")
    file = tmp_path / "weights"
    file.write_bytes(b"12345678")
    _age(file)
    return file, read


def _age(file: Path):
    past_ns = time.time_ns() - 10**10
    os.utime(file, ns=(past_ns, past_ns))


def test_a_large_file_is_read_once_by_all_processes_until_it_changes(large):
    file, read = large
    first = hashes.content_hash(file)
    hashes._known.clear()  # as in another process
    assert hashes.content_hash(file) == first
    assert read == [file]
    file.write_bytes(b"12345679")
    _age(file)
    assert hashes.content_hash(file) != first
    assert read == [file, file]


@pytest.mark.parametrize("damage", ["not JSON", "[]", "{}", None])
def test_a_cache_that_is_damaged_or_cannot_be_written_costs_only_time(damage, large, tmp_path):
    file, read = large
    if damage is None:
        (tmp_path / "cache").write_text("a file where the folder should be")
    else:
        hashes.content_hash(file)
        (entry,) = (tmp_path / "cache" / "editing-harness" / "sha256").iterdir()
        entry.write_text(damage)
        hashes._known.clear()
    assert hashes.content_hash(file) == f"{len(read):064x}"


def test_a_blob_of_the_hub_is_known_by_its_name(large, tmp_path):
    _, read = large
    blob = tmp_path / "models--a--b" / "blobs" / ("ab" * 32)
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"12345678")
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    assert hashes.content_hash(link) == "ab" * 32
    assert not read
