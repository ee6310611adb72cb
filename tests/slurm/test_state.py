"""What is believed about SLURM jobs when SLURM's commands disagree or fail."""

import contextlib
from datetime import UTC, datetime, timedelta

import pytest

from harness.errors import InsufficientMemoryError
from harness.run.heartbeat import Heartbeat
from harness.run.jobs import Batch
from harness.store.store import Store
from slurm.launch import Launch
from slurm.profile import ResourceClass
from slurm.queue import State, states
from slurm.retry import Again, GivenUp, verdict
from slurm.state import ClusterState, cancel, launch_state
from tests.helpers.fake_jobs import fake_job
from tests.slurm.fake_slurm import FakeSlurm

JOB = fake_job("a")
PLACE = JOB.place


@pytest.fixture
def launch(tmp_path):
    made = Launch.create(Store(tmp_path / "store"), "small", "mini", {})
    [asked] = made.ask("only", [("00001-a", [PLACE])])
    made.taken({asked.batch: "7"})
    return made


def line(launch, state, reason="None", start="N/A"):
    return f"7|{state}|node1|0:05|{start}|0|{reason}|{launch.name}|\n"


@pytest.mark.parametrize(
    ("accounting", "state"),
    [
        ("RUNNING", State.GONE),
        ("PENDING", State.GONE),
        ("TIMEOUT", State.TIMEOUT),
        ("OUT_OF_MEMORY", State.OUT_OF_MEMORY),
    ],
)
def test_accounting_is_believed_of_how_a_job_ended_and_not_that_it_lives(launch, slurm, accounting, state):
    """Sites call them runaway jobs; waited for, they would never end."""
    slurm.says(accounting=f"7|{accounting}|node1|00:00:05|Unknown|0:0|None|{launch.name}|\n")
    assert states(["7"], launch.name)["7"].state is state


def observed(launch):
    store = Store(launch.path.parents[1])
    return ClusterState(store, {PLACE: JOB}, [launch], settle_s=0)


def test_a_job_that_never_starts_has_ended_only_if_it_can_be_cancelled(launch, slurm: FakeSlurm):
    slurm.says(queue=line(launch, "PENDING", "BadConstraints"))
    (slurm.folder / "bin" / "scancel").write_text("#!/bin/sh\necho 'scancel: error: Kill job error' >&2; exit 1\n")
    seen = observed(launch)
    seen.look()
    assert launch.submissions[0].ending is None
    assert seen.covered() == {PLACE}
    (slurm.folder / "bin" / "scancel").write_text("#!/bin/sh\nexit 0\n")
    seen.look()
    assert launch.submissions[0].ending.state is State.CANCELLED


def test_a_process_that_ended_for_lack_of_gpu_memory_is_followed_by_one_in_the_next_class(launch, slurm: FakeSlurm):
    [submission] = launch.submissions
    slurm.says(queue=line(launch, "FAILED").replace("|0|", "|256|"))
    with (
        contextlib.suppress(InsufficientMemoryError),
        Heartbeat(launch.progress(submission.batch), Batch(submission.batch, launch.path, (JOB,), "cpu", 1)) as beat,
    ):
        beat.began(JOB)
        raise InsufficientMemoryError("CUDA out of memory")
    observed(launch).look()
    ending = launch.submissions[0].ending
    assert (ending.state, ending.place) == (State.OUT_OF_MEMORY, PLACE)
    assert ending.words == "out of memory on node1 after 5 s (GPU)"
    classes = [ResourceClass(name=name, mem_gb=1, time_min=1) for name in ("only", "larger")]
    assert verdict(JOB, launch.submissions, classes) == Again(1)


@pytest.mark.parametrize(("restarted_s", "is_blamed"), [(-5, True), (5, False)])
def test_a_job_that_fails_after_a_requeue_before_python_starts_is_blamed_on_no_cell(
    launch, slurm: FakeSlurm, restarted_s, is_blamed
):
    """The progress file is still that of the process before the requeue."""
    [submission] = launch.submissions
    with Heartbeat(launch.progress(submission.batch), Batch(submission.batch, launch.path, (JOB,), "cpu", 1)) as beat:
        beat.began(JOB)
    start = (datetime.now(UTC) + timedelta(seconds=restarted_s)).strftime("%Y-%m-%dT%H:%M:%S")
    slurm.says(queue=line(launch, "FAILED", start=start).replace("|0|", "|256|"))
    observed(launch).look()
    ending = launch.submissions[0].ending
    assert (ending.has_begun, ending.place) == ((True, PLACE) if is_blamed else (False, ""))
    fate = verdict(JOB, launch.submissions, [ResourceClass(name="only", mem_gb=1, time_min=1)])
    assert isinstance(fate, GivenUp if is_blamed else Again)


def test_what_cannot_be_cancelled_is_said(slurm, monkeypatch):
    assert cancel("7") == ""
    slurm.says(silence="scancel: error: first\nscancel: error: Unable to contact slurm controller\n")
    assert cancel("7") == "scancel: error: Unable to contact slurm controller"
    monkeypatch.setattr("slurm.state.TIMEOUT_S", 0.05)
    (slurm.folder / "bin" / "scancel").write_text("#!/bin/sh\nexec sleep 5\n")
    assert cancel("7").startswith("no answer")
    monkeypatch.setenv("PATH", "/nowhere")
    assert cancel("7").startswith("not found")


def held(store):
    """Names of launches by the places of jobs that they may still settle."""
    return {place: job.launch for place, job in launch_state(store).jobs.items() if job.is_live}


def test_where_there_is_no_slurm_a_job_has_its_work_until_somebody_has_seen_it_end(launch, slurm, monkeypatch):
    store = Store(launch.path.parents[1])
    slurm.says(queue=line(launch, "RUNNING"))
    assert held(store) == {PLACE: launch.name}
    slurm.says(queue="")
    assert held(store) == {}
    monkeypatch.setenv("PATH", "/nowhere")
    assert held(store) == {PLACE: launch.name}
    launch.close("finished")
    assert held(store) == {}


def lost(launch, *, age_s):
    """The launch, as a driver leaves it that asked so long ago and died before it heard an answer."""
    then = datetime.now(UTC) - timedelta(seconds=age_s)
    file = launch.path / "jobs.jsonl"
    file.write_text(file.read_text().splitlines()[0].replace(launch.submissions[0].asked, then.isoformat()) + "\n")
    return Launch(launch.path)


def test_jobs_that_a_dead_driver_asked_for_are_taken_over_if_slurm_has_them(launch, slurm):
    found = lost(launch, age_s=1000)
    slurm.says(queue=line(found, "RUNNING"))
    observed(found).look()
    assert [each.id for each in found.submissions] == ["7"]


@pytest.mark.parametrize(("age_s", "jobs"), [(60, 1), (1000, 0)])
def test_they_are_waited_for_as_long_as_sbatch_may_try_for_itself(launch, slurm, age_s, jobs):
    found = lost(launch, age_s=age_s)
    observed(found).look()
    assert len(found.submissions) == jobs
