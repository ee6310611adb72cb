"""A benchmark harness for knowledge editing: run suites of methods, models and datasets, and report comparable results.

From a program: `edit`, `evaluate`, `load_records`, `load_edited`, `load_results` and `run` (see docs/python.md). They are
imported when they are first used, so that `import harness` takes milliseconds.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from harness.live.editing import edit as edit
    from harness.live.editing import evaluate as evaluate
    from harness.live.facts import load_records as load_records
    from harness.live.loading import load_edited as load_edited
    from harness.live.suites import load_results as load_results

_HOMES = {
    "edit": "harness.live.editing",
    "evaluate": "harness.live.editing",
    "load_edited": "harness.live.loading",
    "load_records": "harness.live.facts",
    "load_results": "harness.live.suites",
}
"""Module of each function, all in the layer of the Python API; `harness.run` is a package that can be called."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "run":
        return importlib.import_module("harness.run")
    raise AttributeError(f"module 'harness' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "run"})
