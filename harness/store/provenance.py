"""Provenance of results: commit, command, package versions and machine."""

import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.commands import plugin_names, this_command

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pandas", "safetensors", "editing-harness")
JOB = "HARNESS_JOB"
"""Environment variable with the scheduler's id of the current job, set by the launcher's entry point."""


@cache
def environment() -> dict[str, object]:
    """Provenance shared by all cells of this process; `job` is the scheduler's job id, or empty."""
    return {
        "command": this_command(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "job": os.environ.get(JOB, ""),
        "plugins": plugin_names(),
    }


def hparams_of(cell: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """All hyper-parameters that a cell was computed with, those that artifacts decided with their final values.

    The identity in cell.json leaves out what does not decide a result, such as where files are.

    Args:
        cell: the content of cell.json.
        origin: that of provenance.json; may be empty, or lack references if an earlier version wrote it.
    """
    complete, identity = origin.get("references", {}).get("hparams", {}), cell["method"]["hparams"]
    stated = {key: value for key, value in identity.items() if value is not None}  # a path is None there
    return {**identity, **complete, **stated, **origin.get("chosen", {})}


@cache
def processor() -> str:
    """Name of this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    """Output of a git command in the checkout that contains this code; empty if it is not a checkout."""
    here = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(
            ["git", "-C", str(here), *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            encoding="utf-8",
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
