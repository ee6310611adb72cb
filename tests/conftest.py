"""Fixtures that every test may use."""

import os
from pathlib import Path
from typing import Any

import pytest

# before torch is imported: spinning threads starve whatever runs beside the tests
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # each process has a core

CLUSTER = "tests/slurm/"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In one process, what takes minutes comes last; where several share the tests, parts that have such tests come first."""
    slow = {item for item in items if item.get_closest_marker("slow")}
    if not hasattr(config, "workerinput"):
        items.sort(key=lambda item: item in slow)
        return
    long = {_part(item.nodeid) for item in slow}
    items.sort(key=lambda item: (_part(item.nodeid) != CLUSTER, _part(item.nodeid) not in long, item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Parts of the tests to processes, in the order above."""
    from xdist.scheduler import LoadFileScheduling

    class PartScheduling(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return _part(nodeid)

    config.option.loadscopereorder = False
    return PartScheduling(config, log)


def _part(nodeid: str) -> str:
    """Tests that one process runs, because they share fixtures: a file's, or all that share the cluster."""
    return CLUSTER if nodeid.startswith(CLUSTER) else nodeid.partition("::")[0]


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
