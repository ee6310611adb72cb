"""Killed at any moment and started again, a run ends with the bits of one that was never interrupted."""

import random
import signal
import time

import pytest

from tests.helpers.commands import Started, harness, results, run_counted, run_killed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def uninterrupted(home):
    """What an uninterrupted run says, and in how many changes of files."""
    changes = run_counted(home / "small.yaml", home / "store")
    found = results(home / "store")
    assert len(found) == 4 * 3
    return found, changes


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


def until(condition, command, limit_s=120):
    start = time.monotonic()
    while not condition() and command.is_running:
        assert time.monotonic() - start < limit_s
        time.sleep(0.001)


MOMENTS = {
    "after the first artifact": lambda store: next(store.glob("artifacts/*/*/DONE"), None),
    "in the middle of a cell": lambda store: next(store.glob("cells/.*.partial"), None),
    "after the first cell": lambda store: next(store.glob("cells/[!.]*/DONE"), None),
    "after half a second": 0.5,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_from_outside_and_started_again_it_ends_the_same(moment, home, uninterrupted, tmp_path):
    expected, _ = uninterrupted
    store, when = tmp_path / "store", MOMENTS[moment]
    command, start = Started("run", home / "small.yaml", "--store", store, "--no-report"), time.monotonic()
    until((lambda: when(store)) if callable(when) else (lambda: time.monotonic() - start > when), command)
    command.process.kill()
    command.ended()
    assert unfinished(store) == []
    finish(home, store, expected)
