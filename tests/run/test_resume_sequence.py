"""A sequence that is really killed, in the middle, and started again from the command line."""

import json
import random
import signal

import pytest

from tests.helpers.commands import Started, harness, results, run_counted, run_killed
from tests.helpers.kill_at_change import Kill
from tests.helpers.method_bench import OPTIONS
from tests.helpers.small_suites import write_suite

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(home):
    write_suite(
        home / "sequence.yaml",
        models=[{"name": "tiny/llama", "weights": "pretrained", "path": str(home / "llama")}],
        schedule={"sequential": {"block": 2, "score_at": [2, 3, 8]}},
    )
    return home


WITH_STATE = {
    "ultraedit": {},
    "alphaedit": {"v_steps": 4},
    "grace": {"steps": 3},
    "emsedit": {},
    "retrieval": {},
}
"""Methods that keep something from block to block: statistics, second moments of the keys, or the edits themselves."""

KILLS = 4
"""Of each of these methods: twenty in all."""


def told(store):
    """What a store says, and the rows of its curves; `results` fits any cell."""
    curves = {f"{file.parent.name}/curve": file.read_bytes() for file in store.glob("cells/[!.]*/curve.parquet")}
    return results(store) | curves


@pytest.fixture(scope="module")
def uninterrupted(home):
    """What an uninterrupted run says, and in how many changes of files."""
    store = home / "store"
    changes = run_counted(home / "sequence.yaml", store)
    found = told(store)
    assert len(found) == 2 * 4
    return found, changes


def checkpoints(store):
    return sorted(store.glob("cells/.*.checkpoint/edits-*/progress.json"))


def finish(home, store, expected):
    done = harness("run", home / "sequence.yaml", "--store", store, "--no-report")
    assert done.returncode == 0, done.stderr
    assert told(store) == expected
    assert [path for path in store.rglob(".*") if path.name not in (".lock", ".lock.holder")] == []


@pytest.mark.parametrize("share", [0.45, 0.98])
def test_killed_at_a_change_of_files_it_goes_on_from_its_last_block(share, home, uninterrupted, tmp_path):
    expected, changes = uninterrupted
    store = tmp_path / "store"
    killed = run_killed(home / "sequence.yaml", store, round(share * changes))
    assert killed.returncode == -signal.SIGKILL
    kept = {file.parents[1].name: json.loads(file.read_text())["progress"]["blocks"] for file in checkpoints(store)}
    finish(home, store, expected)
    for name, blocks in kept.items():
        folder = store / "cells" / name.removeprefix(".").removesuffix(".checkpoint")
        cost = json.loads((folder / "cost.json").read_text())
        origin = json.loads((folder / "provenance.json").read_text())
        if origin["resumed"]:  # else it was killed when all was done but the cleaning up
            assert origin["resumed"][0]["edits"] == blocks[-1]["edits"]
            assert cost["blocks"][: len(blocks)] == blocks, "what was kept was not done again"
            assert cost["citable"] is False


def test_killed_after_every_few_changes_it_ends_the_same(home, uninterrupted, tmp_path):
    expected, _ = uninterrupted
    store, generator, resumed = tmp_path / "store", random.Random(0), 0
    for _ in range(4):
        killed = run_killed(home / "sequence.yaml", store, generator.randint(30, 60))
        if killed.returncode == 0:
            break
        assert killed.returncode == -signal.SIGKILL
        resumed += bool(checkpoints(store))
    assert resumed >= 2
    finish(home, store, expected)


def test_sequences_with_state_are_killed_twenty_times_at_random_moments_and_end_the_same(home, tmp_path):
    """Between two changes of files, a random number of calls later: in the middle of an edit, of an answer or of a file."""
    suite = write_suite(
        home / "state.yaml",
        name="state",
        models=[{"name": "tiny/llama", "weights": "pretrained", "path": str(home / "llama")}],
        methods=[{"name": name, **OPTIONS[name], **fewer} for name, fewer in WITH_STATE.items()],
        schedule={"sequential": {"block": 2, "score_at": [3, 8]}},
    )
    whole = harness("run", suite, "--store", tmp_path / "whole", "--no-report")
    assert whole.returncode == 0, whole.stderr
    store, generator = tmp_path / "store", random.Random(0)
    for name in WITH_STATE:
        command = ("run", suite, "--store", store, "--no-report", "--only", f"method={name}")
        for _ in range(KILLS):
            kill = Kill(generator.randint(10, 22), below="cells", calls=generator.randint(0, 5000))
            killed = Started(*command, kill=kill).ended()
            assert killed.returncode == -signal.SIGKILL, (name, killed.stderr)
        done = harness(*command)
        assert done.returncode == 0, done.stderr
        (origin,) = (json.loads(file.read_text()) for file in store.glob(f"cells/{name}-*/provenance.json"))
        assert origin["resumed"], "it went on from a block"
    assert told(store) == told(tmp_path / "whole")


def test_a_run_of_another_schedule_does_not_take_the_checkpoint(home, uninterrupted, tmp_path):
    """A checkpoint belongs to one cell and to no other."""
    expected, changes = uninterrupted
    store = tmp_path / "store"
    assert run_killed(home / "sequence.yaml", store, round(0.8 * changes)).returncode == -signal.SIGKILL
    before = checkpoints(store)
    assert before
    other = write_suite(
        home / "other.yaml",
        name="other",
        models=[{"name": "tiny/llama", "weights": "pretrained", "path": str(home / "llama")}],
        schedule={"sequential": {"block": 4, "score_at": [2, 3, 8]}},
    )
    assert harness("run", other, "--store", store, "--no-report").returncode == 0
    assert checkpoints(store) == before
    assert not any(json.loads(file.read_text())["resumed"] for file in store.glob("cells/[!.]*/provenance.json"))
    done = harness("run", home / "sequence.yaml", "--store", store, "--no-report")
    assert done.returncode == 0
    assert told(store).items() >= expected.items()
