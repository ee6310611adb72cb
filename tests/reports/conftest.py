"""Fixtures of the report tests."""

import pytest

from tests.helpers.fake_store import FakeStore


@pytest.fixture
def fake(tmp_path):
    """An empty store to write cells into."""
    return FakeStore(tmp_path / "results")
