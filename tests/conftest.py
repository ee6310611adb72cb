"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

# before torch is imported: spinning threads starve whatever runs beside the tests
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each process has a core


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In one process, what takes minutes comes last. Several take whole files, those with the longest tests first.

    A cluster is one process's, with all tests that need it.
    """
    slow = {item for item in items if item.get_closest_marker("slow")}
    if not config.getoption("loadgroup", False):
        items.sort(key=lambda item: item in slow)
        return
    groups = {item: "slurm" if item.get_closest_marker("slurm") else item.path.stem for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    long = {groups[item] for item in slow}
    items.sort(key=lambda item: (groups[item] != "slurm", groups[item] not in long, groups[item]))


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
