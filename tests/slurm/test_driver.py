"""A driver from its first look to its end, on a SLURM that refuses, forgets or is told to cancel."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from harness.errors import UserError
from harness.files import write_json
from harness.plan.job import jobs
from harness.plan.plan import Plan
from harness.run.outcome import record_failure
from harness.run.progress import Display
from harness.run.start import run
from harness.run.status import cancel
from harness.store.store import Store
from harness.suite import load_suite
from slurm import driver
from slurm.launch import Ending, Launch, launches
from slurm.launcher import SlurmLauncher
from slurm.profile import SlurmProfile
from slurm.queue import State

PROFILE = SlurmProfile(launcher="slurm", mem_gb=64, time_min=600, settle_s=0)
ONLY = ["method=none,ft-l", "model=llama2-7b", "dataset=zsre"]


class StopError(Exception):
    """What a test ends a driver with."""


@pytest.fixture
def plan(tmp_path):
    """Two cells, the model that they need and its answers."""
    return Plan(load_suite("suites/main_table.yaml", scale="mini", only=ONLY, edits=4), Store(tmp_path / "store"))


@pytest.fixture
def clock(monkeypatch):
    """The driver's clock: its pauses take no time, and `steps` are done in them, one in each, until there are none."""
    made = SimpleNamespace(now=1000.0, steps=[])

    def sleep(length_s):
        made.now += length_s
        if not made.steps:
            raise StopError
        made.steps.pop(0)()

    monkeypatch.setattr(driver, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: made.now))
    return made


def nothing():
    """A pause in which nothing happens."""


def follow(plan, profile=PROFILE, **options):
    """A driver's summary and what it has said."""
    out = io.StringIO()
    try:
        summary = driver.drive(plan, profile, Display(Console(file=out, width=300)), **options)
    except StopError:
        summary = None
    return summary, out.getvalue()


def settle(plan, *, reason=None):
    """What jobs would do: all artifacts are built, and all cells are done or have failed."""
    for job in jobs(plan):
        if reason and job.is_cell:
            record_failure(plan.store, job, reason)
        else:
            with plan.store.folder(job.place).writing():
                pass


def test_artifacts_come_first_and_cells_after_them(plan, slurm, clock):
    summary, said = follow(plan, detach=True)
    assert summary is None
    assert "2 cells, class only" in said
    assert len(slurm.lines("asked")) >= 2
    assert "#SBATCH --dependency=afterany:" in (slurm.folder / "script").read_text()


def test_it_follows_its_jobs_to_the_end_and_closes_the_launch(plan, slurm, clock):
    clock.steps = [nothing, lambda: settle(plan)]
    summary, _ = follow(plan)
    assert (len(summary.finished), summary.failed, summary.kept) == (2, (), ())
    assert launches(plan.store) == []
    assert slurm.lines("cancelled"), "jobs that wait with nothing left to do"


def test_arrays_are_cut_at_the_largest_that_slurm_takes(plan, slurm, clock):
    follow(plan, detach=True)
    whole = [line.partition("|")[0] for line in slurm.lines("queue")]
    assert whole[-1].endswith("_[0-1%2]"), "the cells"
    plan = Plan(plan.suite, Store(plan.store.root / "other"))
    follow(plan, PROFILE.model_copy(update={"max_array_size": 1}), detach=True)
    cut = [line.partition("|")[0] for line in slurm.lines("queue")][len(whole) :]
    assert len(cut) == len(jobs(plan))
    assert not any("_" in job for job in cut)


def test_with_another_profile_the_jobs_of_the_first_are_followed_and_none_is_asked_for_twice(plan, slurm, clock):
    follow(plan, detach=True)
    before = slurm.lines("asked")
    clock.steps = [nothing, lambda: settle(plan)]
    summary, _ = follow(plan, PROFILE.model_copy(update={"time_min": 60}))
    assert len(summary.finished) == 2
    assert slurm.lines("asked") == before
    assert launches(plan.store) == []


def test_a_launch_recognises_its_profile_without_keeping_its_setup_lines(plan, slurm, clock):
    secret = PROFILE.model_copy(update={"setup": ["export HF_TOKEN=hf_secret"]})
    follow(plan, secret, detach=True)
    (launch,) = launches(plan.store)
    assert "hf_secret" not in (launch.path / "launch.json").read_text()
    _, said = follow(plan, secret, detach=True)
    assert f"continuing with {launch.name}" in said
    _, said = follow(plan, PROFILE, detach=True)
    assert "continuing" not in said, "another setup is another profile"


def test_a_reason_with_brackets_is_said_as_it_is_and_ends_no_driver(plan, slurm, clock):
    reason = "the prompt holds [/INST] and is no [batch, tokens]"
    clock.steps = [lambda: settle(plan, reason=reason)]
    summary, said = follow(plan)
    assert [why for _, why in summary.failed] == [reason, reason]
    assert said.count(reason) == 2


LIMIT = (
    "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size)\n"
)


def test_a_slurm_that_takes_no_more_jobs_is_asked_again_when_one_has_ended_and_now_and_then(plan, slurm, clock):
    """A launch of thousands would else fill its folder while it waits for days."""
    profile = PROFILE.model_copy(update={"poll_s": int(driver.BUSY_S / 3)})
    follow(plan, profile, detach=True)
    *others, last = slurm.lines("queue")
    slurm.says(refusal=LIMIT, queue="\n".join([*others, last.replace("PENDING", "NODE_FAIL"), ""]))
    asked = []
    clock.steps = [lambda: asked.append(len(slurm.lines("asked")))] * 11
    _, said = follow(plan, profile)
    assert said.count("SLURM takes no more jobs now") == 1
    assert [count - asked[0] for count in asked] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    lost = slurm.lines("queue")[0].replace("PENDING", "NODE_FAIL")
    clock.steps = [lambda: slurm.says(queue="\n".join([lost, *slurm.lines("queue")[1:], ""])), nothing]
    before = len(slurm.lines("asked"))
    follow(plan, profile)
    assert len(slurm.lines("asked")) == before + 2, "at once, as it is another driver, and when a job has ended"


def test_a_slurm_that_takes_no_job_at_all_ends_the_driver_with_its_words(plan, slurm, clock):
    slurm.says(refusal=LIMIT)
    with pytest.raises(UserError, match=r"SLURM takes no job: .*job submit limit.* → .*max_array_size"):
        follow(plan)
    [launch] = launches(plan.store)
    assert launch.submissions == []
    assert [file.name for file in launch.submitit.iterdir()] == [], "nothing is left of what was refused"


def test_what_is_launched_with_options_is_cancelled_with_them_and_nothing_else_is(plan, slurm, clock):
    """The command that `--detach` prints ended the whole sweep once."""
    part = Plan(load_suite("suites/main_table.yaml", scale="mini", only=["method=none"], edits=4), plan.store)
    other = Plan(load_suite("suites/main_table.yaml", scale="mini", only=ONLY), plan.store)

    def left():
        return {launch.name for launch in launches(plan.store)}

    names = []
    for each in (plan, other, part):
        before = left()
        follow(each, detach=True)
        names += left() - before
    assert [".mini.edits-4-" in name for name in names] == [True, False, True]
    cancelled(part)
    assert left() == set(names[:2])
    with pytest.raises(
        UserError, match=r"no launch of main_table\.mini is running with these options, only main_table\.mini"
    ):
        cancelled(part)
    cancelled(Plan(load_suite("suites/main_table.yaml", scale="mini"), plan.store))
    assert left() == set(names[:1]), "no `--only`: all parts of the suite, with its own number of edits"


def launched(plan):
    """A launch that has asked for nothing."""
    suite = plan.suite
    return Launch.create(plan.store, suite.name, suite.scale, {}, variant=suite.variant, only=ONLY)


def cancelled(plan):
    cancel(plan.store, plan.suite, Console(file=io.StringIO()))


def test_what_is_submitted_while_the_launch_is_cancelled_is_cancelled_too(plan, slurm, clock, monkeypatch):
    """`sbatch` may try for two minutes; `harness cancel` has long returned then."""
    submit = driver.submit

    def late(*arguments):
        monkeypatch.setattr(driver, "submit", submit)
        cancelled(plan)
        return submit(*arguments)

    monkeypatch.setattr(driver, "submit", late)
    with pytest.raises(UserError, match="was cancelled"):
        follow(plan)
    assert len(slurm.lines("asked")) == 1, "nothing is asked for after it"
    assert "PENDING" not in (slurm.folder / "queue").read_text()


def test_a_launch_that_died_while_it_asked_is_cancelled_at_once(plan, slurm):
    launch = launched(plan)
    launch.ask("only", [("00001-a", ["cells/a-1"])])
    cancelled(plan)
    assert launches(plan.store) == []
    assert launch.is_over


@pytest.mark.parametrize("way", ["silent", "no SLURM here"])
def test_a_launch_that_cannot_be_cancelled_goes_on(plan, slurm, monkeypatch, way):
    launch = launched(plan)
    if way == "silent":
        slurm.says(silence="scancel: error: Unable to contact slurm controller\n")
    else:
        monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=f"{launch.name}: scancel: .* → try again"):
        cancelled(plan)
    assert not launch.is_over


def test_a_launch_folder_that_somebody_removes_ends_its_driver_in_one_line(plan, slurm, clock):
    def remove():
        [launch] = launches(plan.store)
        launch.path.rename(plan.store.root / "elsewhere")

    clock.steps = [remove]
    with pytest.raises(UserError, match=r"somebody has removed this folder.* → scancel --name="):
        follow(plan)


def test_jobs_of_which_nobody_knows_are_waited_for_before_more_are_asked_for(plan, slurm, clock):
    slurm.says(refusal="sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n")
    clock.steps = [nothing] * 5
    _, said = follow(plan)
    assert "did not say whether it has taken" in said
    assert len(slurm.lines("asked")) == 1


def test_what_is_run_by_force_is_run_whatever_came_of_earlier_jobs(plan, slurm, clock):
    """A driver that is killed leaves endings of which it has not made failures yet."""
    for job in (todo := jobs(plan)):
        if not job.is_cell:
            with plan.store.folder(job.place).writing():
                pass
    follow(plan, detach=True)
    [launch] = launches(plan.store)
    for each in launch.submissions:
        launch.ended(each.batch, Ending(State.CANCELLED, "cancelled", has_begun=False))
    with pytest.raises(StopError):
        run(plan, SlurmLauncher(PROFILE), Console(file=io.StringIO()), force=True)
    assert [job.title for job in todo if plan.store.folder(job.place).failure] == []
    assert len(slurm.lines("asked")) == 2, "once more"


def test_a_launch_that_was_finished_without_a_driver_is_closed_by_the_next_command(plan, slurm, clock):
    follow(plan, detach=True)
    settle(plan)
    assert len(launches(plan.store)) == 1
    summary, _ = follow(plan)
    assert (summary.finished, len(summary.kept)) == ((), 2)
    assert launches(plan.store) == []


def test_on_a_terminal_it_shows_what_runs_where_and_counts_the_rest(plan, slurm, clock):
    """One SLURM job with two cells, of which the first runs."""
    profile = PROFILE.model_copy(update={"packing": 2})
    for job in jobs(plan):
        if not job.is_cell:
            with plan.store.folder(job.place).writing():
                pass
    follow(plan, profile, detach=True)
    [launch] = launches(plan.store)
    [submission] = launch.submissions
    assert len(submission.covers) == 2
    slurm.says(queue=slurm.lines("queue")[0].replace("PENDING|None assigned", "RUNNING|node2") + "\n")
    now = "2026-01-01T00:00:00+00:00"
    beat = {"batch": submission.batch, "host": "h", "pid": 1, "job": submission.id, "started": now, "updated": now}
    beat |= {"done": 0, "total": 2, "place": submission.covers[0], "since": now, "step": "editing", "steps_total": 9}
    write_json(launch.progress(submission.batch), beat)
    display = Display(Console(file=io.StringIO(), width=300, force_terminal=True, color_system=None))
    clock.steps = [nothing]
    with pytest.raises(StopError), display:
        driver.drive(plan, profile, display)
    text = display.console.file.getvalue()
    running, waiting = (job.title for job in jobs(plan))
    for words in (f"{running} · node2 · job {submission.id} · editing", "0/9"):
        assert words in text
    assert waiting not in text
    assert "1 running, 1 pending, 0 of 2 settled, 0 failed" in text
