"""Killed at any moment and started again, a run ends with the bits of one that was never interrupted."""

import random
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.commands import ROOT, environment, harness, results, run_killed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uninterrupted(home):
    """What an uninterrupted run says, and in how many changes of files."""
    done = run_killed(home / "small.yaml", home / "store", 0)
    assert done.returncode == 0, done.stderr
    found = results(home / "store")
    assert len(found) == 4 * 3
    return found, int(done.stdout.rpartition("changes ")[2])


def left_over(store):
    return [path for path in store.rglob(".*") if path.name not in (".lock", ".lock.holder")]


def unfinished(store):
    """Folders under their final names without DONE: there must never be one."""
    return [
        path for path in [*store.glob("cells/[!.]*"), *store.glob("artifacts/*/[!.]*")] if not (path / "DONE").exists()
    ]


def finish(home, store, expected):
    done = harness("run", home / "small.yaml", "--store", store, "--no-report")
    assert done.returncode == 0, done.stderr
    assert results(store) == expected
    assert left_over(store) == []


@pytest.mark.parametrize("share", [0.02, 0.4, 0.99])
def test_killed_at_a_change_of_files_and_started_again_it_ends_the_same(share, home, uninterrupted, tmp_path):
    """From the first artifact to the last cell."""
    expected, changes = uninterrupted
    store = tmp_path / "store"
    killed = run_killed(home / "small.yaml", store, max(1, round(share * changes)))
    assert killed.returncode == -signal.SIGKILL
    assert unfinished(store) == []
    assert results(store).items() < expected.items()
    finish(home, store, expected)


def test_killed_again_and_again_it_still_ends_the_same(home, uninterrupted, tmp_path):
    expected, _ = uninterrupted
    store, generator = tmp_path / "store", random.Random(0)
    for _ in range(4):
        killed = run_killed(home / "small.yaml", store, generator.randint(3, 25))
        if killed.returncode == 0:
            break
        assert killed.returncode == -signal.SIGKILL
        assert unfinished(store) == []
    finish(home, store, expected)


def until(condition, process, limit_s=120):
    start = time.monotonic()
    while not condition() and process.poll() is None:
        assert time.monotonic() - start < limit_s
        time.sleep(0.001)


MOMENTS = {
    "after the first artifact": lambda store: next(store.glob("artifacts/*/*/DONE"), None),
    "in the middle of a cell": lambda store: next(store.glob("cells/.*.partial"), None),
    "after the first cell": lambda store: next(store.glob("cells/[!.]*/DONE"), None),
    **{f"after {seconds:.1f} s": seconds for seconds in (random.Random(1).uniform(0.5, 6) for _ in range(1))},
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_from_outside_and_started_again_it_ends_the_same(moment, home, uninterrupted, tmp_path):
    expected, _ = uninterrupted
    store, when = tmp_path / "store", MOMENTS[moment]
    command = [sys.executable, "-m", "harness", "run", home / "small.yaml", "--store", store, "--no-report"]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE) as process:
        start = time.monotonic()
        if callable(when):
            until(lambda: when(store), process)
        else:
            until(lambda: time.monotonic() - start > when, process)
        process.kill()
    assert unfinished(store) == []
    finish(home, store, expected)
