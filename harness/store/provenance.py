"""Where a number comes from: the commit, the command, the packages and the machine that made it."""

import os
import platform
import shlex
import socket
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

from harness import registry

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pandas", "safetensors", "editing-harness")
JOB = "HARNESS_JOB"
"""Environment variable: the scheduler's id of the job that this process belongs to. A launcher's own entry point sets it."""


@cache
def environment() -> dict[str, object]:
    """What every cell of this process shares; `job` is the scheduler's id of the job, where there is a scheduler."""
    return {
        "command": command(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "job": os.environ.get(JOB, ""),
        "plugins": registry.plugin_names(),
    }


def command() -> str:
    """The command line as a user would type it again; in a process that multiprocessing has spawned, its parent's."""
    program, module = Path(sys.argv[0]), sys.modules["__main__"].__spec__
    if module is not None:
        start = ["python", "-m", module.name.removesuffix(".__main__")]
    elif program.name == "__main__.py":  # spawned: it has its parent's arguments, and a main module of its own
        start = ["python", "-m", program.parent.name]
    else:
        start = [program.name]
    return shlex.join([*start, *sys.argv[1:]])


def _git(*arguments: str) -> str:
    """Output of a git command about the checkout that this code lies in; empty where it is not a checkout."""
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
