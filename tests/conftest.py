"""Fixtures that every test may use, and the reasons for which marked tests are skipped."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# before torch is imported: each process has a core, and waiting threads must not spin on it
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _no_easyedit() -> str:
    from harness.errors import UserError
    from methods.easyedit import checkout

    try:
        checkout.find()
    except UserError as error:
        return str(error)
    return ""


def _no_gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "torch sees no GPU"


OBSTACLES: dict[str, Callable[[], str]] = {"easyedit": _no_easyedit, "gpu": _no_gpu}
"""Why tests with a marker cannot run here, or an empty string if they can."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a marked test that cannot run here, and say why."""
    for marker, obstacle in OBSTACLES.items():
        if item.get_closest_marker(marker) and (reason := obstacle()):
            pytest.skip(reason)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of upstream records, tokenizers and published tables that some tests compare with."""
    folder = Path(os.environ.get("HARNESS_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder of upstream records at {folder} (set HARNESS_SHARED)")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two small checkpoints, records, and a suite over them; tests of a module may add further suites."""
    from tests.helpers.small_suites import write_home

    folder = tmp_path_factory.mktemp("home")
    write_home(folder)
    return folder
