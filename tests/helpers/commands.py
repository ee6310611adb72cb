"""The command line, in a process of its own or in this one, and what it leaves in a store."""

import contextlib
import io
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

from tests.helpers.kill_at_change import Kill, run_watched

ROOT = Path(__file__).parents[2]
KILLER = Path(__file__).with_name("kill_at_change.py")

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.helpers.preloaded"])


def environment() -> dict[str, str]:
    """One thread, wide lines, no data folder of the developer's."""
    kept = {key: value for key, value in os.environ.items() if key != "HARNESS_DATA"}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}


class Started:
    """`python -m harness` in a process of its own, forked from one that has imported all that a run needs.

    Imports take several times as long as the small runs of tests. All forks of a test process have one seed of `hash`; what
    may depend on its order is compared with the results of an interpreter of its own (`run_counted`).

    Args:
        arguments: of the command.
        folder: where it is started.
        kill: when it is killed.
    """

    def __init__(self, *arguments: object, folder: Path = ROOT, kill: Kill | None = None) -> None:
        self._arguments = [*map(str, arguments)]
        self._streams = tempfile.TemporaryDirectory()
        with mock.patch.dict(os.environ, environment(), clear=True):  # what modules read when they are imported
            self.process = _FORKS.Process(
                target=_become, args=(self._arguments, folder, dict(os.environ), Path(self._streams.name), kill)
            )
            self.process.start()

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.exitcode is None

    def ended(self, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait for its end, and kill it after so many seconds."""
        self.process.join(timeout_s)
        if self.is_running:
            self.process.kill()
            self.process.join()
            raise subprocess.TimeoutExpired(self._arguments, timeout_s)
        said = (Path(self._streams.name, name).read_text(encoding="utf-8") for name in STREAMS)
        done = subprocess.CompletedProcess(self._arguments, self.process.exitcode, *said)
        self._streams.cleanup()
        return done


STREAMS = ("stdout", "stderr")


def _become(
    arguments: Sequence[str], folder: Path, variables: Mapping[str, str], streams: Path, kill: Kill | None
) -> None:
    """Be `python -m harness`, started in a folder, with these arguments and variables; it writes to files in `streams`."""
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    for descriptor, name in enumerate(STREAMS, 1):
        os.dup2(os.open(streams / name, os.O_WRONLY | os.O_CREAT), descriptor)
    if kill is not None:
        sys.exit(run_watched(kill, arguments))
    sys.argv = ["harness", *arguments]
    runpy.run_module("harness", run_name="__main__", alter_sys=True)


def harness(*arguments: object, folder: Path = ROOT, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `python -m harness` with these arguments in a folder."""
    return Started(*arguments, folder=folder).ended(timeout_s)


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
    """`python -m harness run`, killed at the given change to the store's files."""
    return Started(*_run(suite, store), kill=Kill(kill_at)).ended()


def run_counted(suite: Path, store: Path) -> int:
    """`python -m harness run` to its end, in an interpreter of its own; the number of changes to the store's files."""
    done = subprocess.run(
        [sys.executable, KILLER, "0", *_run(suite, store)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.rpartition("changes ")[2])


def _run(suite: Path, store: Path) -> list[str]:
    return ["run", str(suite), "--store", str(store), "--no-report"]


def results(store: Path) -> dict[str, bytes]:
    """The result files of all cells of a store, byte for byte, without anything that depends on time."""
    return {
        f"{file.parent.name}/{file.name}": file.read_bytes()
        for name in ("records.parquet", "metrics.json", "cell.json")
        for file in sorted((store / "cells").glob(f"[!.]*/{name}"))
    }
