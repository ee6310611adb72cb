"""Small checkpoints that a worker can load by their reference, and modules for it to find."""

import os
from pathlib import Path

import pytest
import torch

from harness.models.catalogue import ModelRef
from harness.models.loaded import LoadedModel
from harness.models.loading import load
from tests.helpers.small_suites import write_checkpoint
from tests.helpers.tiny_models import ARCHITECTURES
from tests.methods.easyedit.parity import three_layers


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Path:
    """A folder with a two-layer checkpoint for each architecture."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for architecture in ("llama", "mistral", "gptj"):
        write_checkpoint(folder / architecture, architecture)
    return folder


@pytest.fixture(scope="session")
def small_model(checkpoints):
    """Loads one of them, in float32 unless told."""

    def loaded(architecture: str, dtype: str = "float32") -> LoadedModel:
        torch.set_num_threads(1)
        reference = ModelRef(f"tiny/{architecture}", "pretrained", source=str(checkpoints / architecture), dtype=dtype)
        return load(reference, "cpu")

    return loaded


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tmp_path_factory):
    """A checkpoint with a layer below and one above the memory's; other files make their own."""
    return three_layers(tmp_path_factory.mktemp("models"), request.param)


@pytest.fixture(scope="module")
def kept():
    """Workers by the name of their model, for `asking.theirs`: starting one takes seconds."""
    return {}


@pytest.fixture(autouse=True)
def _tests_are_importable_in_the_worker(monkeypatch):
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
