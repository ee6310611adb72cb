"""What a person sees while jobs run: lines everywhere, bars on a terminal."""

import dataclasses
import io
import time

from rich.console import Console

from harness.plan.estimate import Resources
from harness.run import progress
from harness.run.outcome import Outcome
from harness.run.progress import FEW, MANY, Display, Elsewhere, Work
from tests.helpers.fake_jobs import fake_job


def display(**options):
    return Display(Console(file=io.StringIO(), width=200, **options))


def of_seconds(job, seconds):
    return dataclasses.replace(job, resources=Resources(0, seconds))


def said(shown):
    return shown.console.file.getvalue()


def test_each_job_that_ends_is_one_line_with_its_number_and_time():
    shown, (a, b) = display(), map(fake_job, "ab")
    shown.expect([a, b])
    shown.began(a)
    shown.ended(a, Outcome(1.23))
    shown.ended(b, Outcome(None))
    assert said(shown) == "to do: 2 artifacts, about 0 s of work\n✓ 1/2 a 1.2 s\n✓ 2/2 b\n"


def test_what_an_edited_model_says_about_itself_follows_its_line():
    shown, job = display(), fake_job("a")
    shown.expect([job])
    shown.ended(job, Outcome(0.1, remarks=("it loses [half] of its tokens",)))
    assert said(shown).splitlines()[1:] == ["✓ 1/1 a 0.1 s", "note a: it loses [half] of its tokens"]


def test_a_reason_with_brackets_is_said_as_it_is():
    shown, job = display(), fake_job("a")
    reason = "the prompt holds [/INST] and is no [batch, tokens]"
    shown.expect([job])
    shown.ended(job, Outcome(0.1, reason))
    assert said(shown).splitlines()[1:] == [f"✗ 1/1 a: {reason}"]


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


def test_without_a_terminal_a_line_says_now_and_then_what_runs_how_far_it_is_and_how_long_the_rest_takes(monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", 0.02)
    shown, (a, b) = display(), (of_seconds(fake_job(name), 90) for name in "ab")
    with shown:
        shown.expect([a, b])
        shown.began(a)
        with shown.bar("training", 50) as advance:
            advance(20)
            time.sleep(0.2)
    assert said(shown).splitlines() == [
        "to do: 2 artifacts, about 3 min of work",
        "0/2 artifacts: a; training 20/50, about 2 min left",  # once: nothing has changed since
    ]


def test_work_outside_of_jobs_is_told_without_counts(monkeypatch):
    """As when an edited model is opened to be asked."""
    monkeypatch.setattr(progress, "EVERY_S", 0.02)
    shown = display()
    with shown:
        with shown.bar("ROME", 1):
            time.sleep(0.1)
        time.sleep(0.1)
    assert said(shown).splitlines() == ["ROME 0/1"]


def test_of_many_jobs_without_a_terminal_only_failures_have_a_line_each():
    shown, jobs = display(), [fake_job(str(number)) for number in range(MANY + 1)]
    shown.expect(jobs)
    for job in jobs[1:]:
        shown.ended(job, Outcome(0.1))
    shown.ended(jobs[0], Outcome(0.1, "it rained"))
    assert said(shown).splitlines()[1:] == [f"✗ {MANY + 1}/{MANY + 1} 0: it rained"]


def test_on_a_terminal_one_bar_shows_how_much_of_everything_is_done_and_the_time_left():
    shown, (a, b) = display(force_terminal=True, color_system=None), (of_seconds(fake_job(name), 600) for name in "ab")
    shown._title = "small.paper"
    with shown:
        shown.expect([a, b])
        shown.ended(a, Outcome(600.0))
        shown._board.refresh()
    assert "1/2 artifacts" in said(shown)
    assert " left" in said(shown)
    assert sum(task.description == "small.paper" for task in shown._board.tasks) == 1


def test_the_time_left_follows_the_pace_of_the_jobs_that_have_ended(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "PRIOR_S", 0.001)
    work, jobs = Work(), [of_seconds(fake_job(str(number)), 10.0) for number in range(4)]
    work.add(jobs)
    assert work.left_s() == 40
    now[0] += 30
    work.ended(jobs[0], has_failed=False)  # three times as long as estimated
    assert round(work.left_s()) == 90
    work.ended(jobs[1], has_failed=True)  # says nothing about the pace, and is no longer waited for
    assert round(work.left_s()) == 60
    now[0] += 20
    assert round(work.left_s()) == 40
