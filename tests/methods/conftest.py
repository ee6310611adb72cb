"""Models that facts can be written into, for the tests of ROME, MEMIT and what they share; other files make their own."""

import pytest
import torch

from tests.helpers.tiny_models import ARCHITECTURES
from tests.helpers.tiny_rome import able_model


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    torch.set_num_threads(1)
    return able_model(request.param)


@pytest.fixture
def llama():
    return able_model("llama")
