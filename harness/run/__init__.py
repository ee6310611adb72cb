"""Running a plan: launch profiles, jobs, the runner of a cell, checkpoints of sequences, cost and progress.

The package can be called: `harness.run("main_table", scale="mini")` is `harness.live.suites.run`.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Run a suite and return its `harness.live.suites.Results`."""
        # by name, because this package is below the one that it calls
        return importlib.import_module("harness.live.suites").run(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage  # as the Python data model has it for modules
