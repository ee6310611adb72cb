"""A small valid suite; each test changes one part of it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import pytest

from harness.suite.entries import ModelEntry

BASE = """\
name: tiny
models: [llama2-7b, gpt-j-6b]
methods: [none, ft-l]
datasets: [{name: zsre, edits: 100}]
"""

Write = Callable[..., Path]

T = TypeVar("T")


def named(of_models: Mapping[ModelEntry, T]) -> dict[str, T]:
    """By name of the model, in suites whose models have different names."""
    return {model.name: value for model, value in of_models.items()}


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
