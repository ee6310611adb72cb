"""The cluster that all tests of this folder share; without SLURM on this machine they are skipped and say so."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.small_suites import write_checkpoint, write_records
from tests.slurm.cluster.cluster import Cluster, NoSlurmError
from tests.slurm.cluster.sweep import Sweep


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    """For fixtures that several tests share; a test asks for `cluster`."""
    try:
        running = Cluster().start()
    except NoSlurmError as error:
        pytest.skip(f"no SLURM: {error}")
    with running:
        yield running


@pytest.fixture
def cluster(running_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A cluster with all its nodes, that SLURM's commands find from here on."""
    for name, value in running_cluster.environment.items():
        monkeypatch.setenv(name, value)
    running_cluster.warn_of_preemption(True)
    running_cluster.heal()
    return running_cluster


@dataclass(frozen=True)
class Local:
    """What `--launch local` makes of the cells that tests launch, and what sweeps on the cluster start from.

    Attributes:
        home: the folder of checkpoint and records.
        sweep: six cells in batch.
    """

    home: Path
    sweep: Sweep

    def start(self, folder: Path, **options: Any) -> Sweep:
        """A sweep that is yet to run and that finds its artifacts built, so that only its cells are jobs."""
        made = Sweep(self.sweep.cluster, self.home, folder, **options)
        shutil.copytree(self.sweep.store / "artifacts", made.store / "artifacts")
        return made


@pytest.fixture(scope="session")
def local(running_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Local:
    """Run once for all tests."""
    home = tmp_path_factory.mktemp("home")
    write_checkpoint(home / "llama", "llama")
    write_records(home / "records")
    sweep = Sweep(running_cluster, home, tmp_path_factory.mktemp("local"), cells=6)
    assert sweep.run("local") == 0, sweep.story()
    return Local(home, sweep)
