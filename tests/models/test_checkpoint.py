"""What names a checkpoint: its weights too, not only their shapes."""

import json

import numpy as np
from safetensors.numpy import save_file

from harness.models.checkpoint import inspect


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
