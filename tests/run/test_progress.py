"""What a person sees while jobs run: lines everywhere, bars on a terminal."""

import io

from rich.console import Console

from harness.run.outcome import Outcome
from harness.run.progress import FEW, Display, Elsewhere
from tests.helpers.fake_jobs import fake_job


def display(**options):
    return Display(Console(file=io.StringIO(), width=200, **options))


def said(shown):
    return shown.console.file.getvalue()


def test_each_job_that_ends_is_one_line_with_its_number_and_time():
    shown, (a, b) = display(), map(fake_job, "ab")
    shown.expect([a, b])
    shown.began(a)
    shown.ended(a, Outcome(1.23))
    shown.ended(b, Outcome(None))
    assert said(shown) == "✓ 1/2 a 1.2 s\n✓ 2/2 b\n"


def test_a_reason_with_brackets_is_said_as_it_is():
    shown, job = display(), fake_job("a")
    reason = "the prompt holds [/INST] and is no [batch, tokens]"
    shown.expect([job])
    shown.ended(job, Outcome(0.1, reason))
    assert said(shown) == f"✗ 1/1 a: {reason}\n"


def test_where_nobody_watches_there_are_only_lines():
    shown = display()
    with shown, shown.bar("training", 50) as advance:
        advance(20)
        shown.began(fake_job("a"))
        shown.follow({"cells/b": Elsewhere("b on node1", 1, 3)}, "1 running")
        shown.note("[odd] names stay")
    assert said(shown) == "note [odd] names stay\n"


def test_on_a_terminal_bars_show_what_runs_here_and_elsewhere():
    shown = display(force_terminal=True, color_system=None)
    with shown, shown.bar("training", 50) as advance:
        advance(20)
        shown.began(fake_job("a job of this machine"))
        shown.follow({"cells/b": Elsewhere("b [batch] on node1", 1, 3)}, "1 running, 4 pending")
        shown._board.refresh()
    for words in ("training", "20/50", "a job of this machine", "b [batch] on node1", "1/3", "1 running, 4 pending"):
        assert words in said(shown)


def test_jobs_that_no_longer_run_elsewhere_lose_their_bar_and_of_many_only_some_have_one():
    shown = display(force_terminal=True, color_system=None)
    with shown:
        shown.follow({f"cells/{number}": Elsewhere(f"number {number}") for number in range(FEW + 5)}, "many")
        assert len(shown._board.tasks) == FEW
        shown.follow({"cells/3": Elsewhere("number 3")}, "1 running")
        assert [task.description for task in shown._board.tasks] == ["number 3"]
