"""What a driver shows while it waits."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from harness.files import write_json
from harness.store.store import Store
from slurm.launch import Launch
from slurm.queue import JobState, State
from slurm.state import Sight
from slurm.status import FEW, Row, Status, board

PLACES = [f"cells/c{number}-0" for number in range(3)]


@pytest.fixture
def sight(tmp_path):
    """A job with three cells of which the first is done and the second runs."""
    store = Store(tmp_path)
    launch = Launch.create(store, "small", "mini", {})
    [job] = launch.ask("only", [("00001-cells", PLACES)])
    launch.taken({job.unit: "7_0"})
    now = "2026-01-01T00:00:00+00:00"
    beat = {
        "unit": job.unit,
        "host": "h",
        "pid": 1,
        "job": "7_0",
        "started": now,
        "updated": now,
        "done": 1,
        "total": 3,
    }
    write_json(
        launch.progress(job.unit), beat | {"place": PLACES[1], "since": now, "step": "editing", "steps_total": 9}
    )
    tasks = {place: SimpleNamespace(place=place, title=f"title of {place}") for place in PLACES[1:]}
    state = JobState("7_0", State.RUNNING, launch.name, node="node2")
    return Sight(store, tasks, [launch], 0, _active={(launch.name, job.unit): state})


def shown(renderable):
    console = Console(file=io.StringIO(), width=160)
    console.print(renderable)
    return console.file.getvalue()


def test_the_board_names_what_runs_and_counts_the_rest(sight):
    text = shown(board(sight, total=3))
    assert all(word in text for word in (f"title of {PLACES[1]}", "node2", "7_0", "editing 0/9"))
    assert f"title of {PLACES[2]}" not in text
    assert "1 running, 1 pending, 1 of 3 settled, 0 failed" in text


def test_of_many_cells_only_those_are_listed_that_somebody_may_want_to_look_at():
    rows = [Row(f"cells/{number}", f"cell {number}", "done") for number in range(FEW)]
    rows += [Row("cells/bad", "bad cell", "failed", note="it rained", log="/there/log.txt")]
    text = shown(Status(rows).table())
    assert "bad cell" in text
    assert "/there/log.txt" in text
    assert "cell 7 " not in text
    assert f"{FEW} done, 1 failed" in text
    assert "cell 7 " in shown(Status(rows).table(everything=True))
