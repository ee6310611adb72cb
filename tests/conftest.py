"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

# before torch is imported: spinning threads starve whatever runs beside the tests
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes comes last."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `easyedit` call its code; without a checkout they say what brings one."""
    if item.get_closest_marker("easyedit"):
        from harness.errors import UserError
        from methods.easyedit import checkout

        try:
            checkout.find()
        except UserError as error:
            pytest.skip(str(error))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real upstream records, tokenizers and published tables that some tests measure against."""
    folder = Path(os.environ.get("HARNESS_SHARED", Path(__file__).parents[2] / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder of upstream records at {folder} (set HARNESS_SHARED)")
    return folder
