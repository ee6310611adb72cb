"""Provenance of results: commit, command, package versions and machine."""

import os
import platform
import shlex
import socket
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from harness.commands import plugin_names

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pandas", "safetensors", "editing-harness")
COMMAND = "HARNESS_COMMAND"
"""Environment variable: the command that launched this process elsewhere. A launcher's own entry point sets it."""
JOB = "HARNESS_JOB"
"""Environment variable with the scheduler's id of the current job, set by the launcher's entry point."""


@cache
def environment() -> dict[str, object]:
    """Provenance shared by all cells of this process; `job` is the scheduler's job id, or empty."""
    return {
        "command": command(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "job": os.environ.get(JOB, ""),
        "plugins": plugin_names(),
    }


def command() -> str:
    """The command line that reproduces this process; for a process that a launcher has started, the launcher's."""
    if launched_by := os.environ.get(COMMAND):
        return launched_by
    program, module = Path(sys.argv[0]), sys.modules["__main__"].__spec__
    if module is not None:
        start = ["python", "-m", module.name.removesuffix(".__main__")]
    elif program.name == "__main__.py":  # spawned: the parent's arguments, but another main module
        start = ["python", "-m", program.parent.name]
    else:
        start = [program.name]
    return shlex.join([*start, *sys.argv[1:]])


def _git(*arguments: str) -> str:
    """Output of a git command in the checkout that contains this code; empty if it is not a checkout."""
    here = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
