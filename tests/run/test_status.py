"""The status of a plan as a table."""

import io

from rich.console import Console

from harness.api import JobStatus
from harness.run.status import FEW, Status


def shown(renderable):
    console = Console(file=io.StringIO(), width=160)
    console.print(renderable)
    return console.file.getvalue()


def test_of_many_cells_only_those_are_listed_that_somebody_may_want_to_look_at():
    rows = [JobStatus(f"cells/{number}", f"cell {number}", "done") for number in range(FEW)]
    rows += [JobStatus("cells/bad", "bad cell", "failed", note="it rained", log="/there/log.txt")]
    text = shown(Status(rows).table())
    assert "bad cell" in text
    assert "/there/log.txt" in text
    assert "cell 7 " not in text
    assert f"{FEW} done, 1 failed" in text
    assert "cell 7 " in shown(Status(rows).table(everything=True))


def test_artifacts_are_shown_and_not_counted():
    status = Status([JobStatus("cells/a", "a", "to do")], [JobStatus("artifacts/x/1", "an artifact", "running")])
    assert "an artifact" in shown(status.table())
    assert status.sentence == "1 to do"
    assert status.data()["artifacts"][0]["place"] == "artifacts/x/1"
