"""A small valid suite; each test changes one part of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

BASE = """\
name: tiny
models: [llama2-7b, gpt-j-6b]
methods: [none, ft-l]
datasets: [{name: zsre, edits: 100}]
"""

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_data_folder_from_outside(monkeypatch):
    monkeypatch.delenv("HARNESS_DATA", raising=False)


@pytest.fixture
def write(tmp_path, monkeypatch) -> Write:
    """Write a suite file into an empty working directory; by default the small suite followed by `more`."""
    monkeypatch.chdir(tmp_path)

    def _write(more: str = "", *, base: str = BASE, name: str = "suite.yaml") -> Path:
        Path(name).write_text(base + more)
        return Path(name)

    return _write
