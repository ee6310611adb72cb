"""A SLURM of shell scripts for each test that asks for it."""

from pathlib import Path

import pytest

from tests.slurm.fake_slurm import FakeSlurm


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """Empty, and it answers."""
    return FakeSlurm(tmp_path / "slurm", monkeypatch)
