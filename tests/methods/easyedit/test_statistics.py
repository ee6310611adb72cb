"""Statistics files in EasyEdit's format: what our own reader of published ones finds in them."""

import numpy as np
import pytest
import torch

from methods.common.moments import published_files
from methods.common.moments_build import read_published
from methods.easyedit import statistics
from tests.helpers.tiny_rome import read_moment, write_moments


def written(model, folder, layers=(0, 1)):
    model.model.config._name_or_path = "hub/some-model"
    moments = write_moments(folder / "moments", model, layers)
    return moments, statistics.write(moments, model, layers, folder / "stats")


@pytest.mark.parametrize("architecture", ["llama", "gptj"])
def test_the_second_moments_come_back(small_model, tmp_path, architecture):
    model = small_model(architecture)
    moments, _ = written(model, tmp_path)
    files = published_files(model.ref, [0, 1], tmp_path / "stats")
    for layer, file in files.items():
        count, sum_KK = read_published(file, model.value_matrix(layer)[1].shape[1])
        assert count == 123
        assert sum_KK.dtype == torch.float32
        torch.testing.assert_close(sum_KK.double() / count, read_moment(moments, layer), rtol=1e-6, atol=1e-6)


def test_the_name_says_model_layer_precision_and_sample(small_model, tmp_path):
    _, options = written(small_model("llama"), tmp_path, layers=[1])
    (file,) = (tmp_path / "stats").rglob("*.npz")
    assert file.parent.name == f"{options['mom2_dataset']}_stats"
    assert file.parent.parent.name == "some-model"
    expected = f"model.layers.1.mlp.down_proj_{options['mom2_dtype']}_mom2_{options['mom2_n_samples']}.npz"
    assert file.name == expected
    assert options["stats_dir"] == str(tmp_path / "stats")
    with np.load(file) as content:
        assert int(content["sample_size"]) == options["mom2_n_samples"] == 123
        assert str(content["mom2.constructor"]).endswith(".SecondMoment()")


def test_a_file_that_is_there_is_not_written_again(small_model, tmp_path):
    model = small_model("llama")
    written(model, tmp_path)
    (file, _) = sorted((tmp_path / "stats").rglob("*.npz"))
    before = file.stat().st_mtime_ns
    written(model, tmp_path)
    assert file.stat().st_mtime_ns == before
