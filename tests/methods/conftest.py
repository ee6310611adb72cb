"""What tests of several methods share; other files make their own."""

import pytest
import torch

from harness.models.catalogue import CATALOGUE
from tests.helpers.small_suites import small_entry, write_checkpoint, write_records
from tests.helpers.tiny_models import ARCHITECTURES
from tests.helpers.tiny_rome import able_model


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    """A model that facts can be written into, for ROME, MEMIT and what they share."""
    torch.set_num_threads(1)
    return able_model(request.param)


@pytest.fixture
def llama():
    return able_model("llama")


@pytest.fixture(scope="module")
def small_checkpoints(tmp_path_factory):
    """A folder with three checkpoints, under catalogue names of their own, and records."""
    home = tmp_path_factory.mktemp("contract")
    write_records(home / "records")
    with pytest.MonkeyPatch.context() as patch:
        for seed, architecture in enumerate(ARCHITECTURES):
            checkpoint = write_checkpoint(home / architecture, architecture, seed)
            made = small_entry(architecture, str(checkpoint))
            patch.setitem(CATALOGUE, made.name, made)
        yield home


@pytest.fixture(scope="module")
def artifact_store(tmp_path_factory):
    """Artifacts are built once for all tests of a file."""
    return tmp_path_factory.mktemp("store")
