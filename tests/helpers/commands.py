"""The command line, in a process of its own or in this one, and what it leaves in a store."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[2]
KILLER = Path(__file__).with_name("kill_at_change.py")


def environment() -> dict[str, str]:
    """One thread, wide lines, no data folder of the developer's."""
    kept = {key: value for key, value in os.environ.items() if key != "HARNESS_DATA"}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}


def harness(*arguments: object, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `python -m harness` with these arguments."""
    return subprocess.run(
        [sys.executable, "-m", "harness", *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def harness_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """As `harness`, in this process, which saves the imports; for commands that run no cell."""
    from harness.cli import main

    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, environment(), clear=True),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main(list(map(str, arguments)))
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def run_killed(suite: Path, store: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
    """`python -m harness run`, killed at the given change to the store's files; never if it is 0."""
    arguments = ["run", suite, "--store", store, "--no-report"]
    return subprocess.run(
        [sys.executable, KILLER, str(kill_at), store, *map(str, arguments)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def results(store: Path) -> dict[str, bytes]:
    """The result files of all cells of a store, byte for byte, without anything that depends on time."""
    return {
        f"{file.parent.name}/{file.name}": file.read_bytes()
        for name in ("records.parquet", "metrics.json", "cell.json")
        for file in sorted((store / "cells").glob(f"[!.]*/{name}"))
    }
