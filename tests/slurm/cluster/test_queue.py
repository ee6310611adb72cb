"""What SLURM says of jobs, each way to end on a real controller."""

import itertools
import signal
import time
from datetime import UTC, datetime

import pytest

from harness.errors import UserError
from slurm import queue
from slurm.queue import JobState, State, elements, named, states

pytestmark = pytest.mark.slurm

_names = (f"queue-{number}" for number in itertools.count())


@pytest.fixture
def name():
    """A name that no other test's jobs have."""
    return next(_names)


def ended(job, name, limit_s=40):
    """The state of a job that ends."""
    start = time.monotonic()
    while (state := states([job], name)[job]).is_live:
        assert time.monotonic() - start < limit_s, state
        time.sleep(0.1)
    return state


ENDINGS = {
    "true": (State.COMPLETED, 0, None),
    "exit 3": (State.FAILED, 3, None),
    "kill -KILL $$": (State.FAILED, None, signal.SIGKILL),
    "srun bash -c 'kill -KILL $$'": (State.FAILED, None, signal.SIGKILL),
    "bash -c 'kill -TERM $$'": (State.FAILED, None, signal.SIGTERM),
}


@pytest.mark.parametrize("script", ENDINGS)
def test_a_job_that_ends_by_itself_tells_how(script, cluster, name):
    state = ended(cluster.submit(script, f"--job-name={name}"), name)
    assert (state.state, state.exit_code, state.signal) == ENDINGS[script]
    assert state.node in cluster.nodes


def test_a_job_that_waits_and_runs_is_live(cluster, name):
    first = cluster.submit("sleep 60", f"--job-name={name}")
    second = cluster.submit("true", f"--job-name={name}", f"--dependency=afterok:{first}")
    cluster.until(first, "RUNNING")
    told = states([first, second], name)
    assert told[first].state is State.RUNNING
    assert (told[second].state, told[second].reason) == (State.PENDING, "Dependency")
    assert all(state.is_live for state in told.values())
    assert not told[second].never_starts
    cluster.run("scancel", first, second)
    assert ended(first, name).state is State.CANCELLED
    assert ended(second, name).state is State.CANCELLED


def test_a_job_whose_dependency_failed_never_starts(cluster, name):
    first = cluster.submit("false", f"--job-name={name}")
    second = cluster.submit("true", f"--job-name={name}", f"--dependency=afterok:{first}")
    assert ended(first, name).state is State.FAILED
    start = time.monotonic()
    while not states([second], name)[second].never_starts:
        assert time.monotonic() - start < 20
        time.sleep(0.1)
    cluster.run("scancel", second)


@pytest.mark.slow
def test_a_job_over_its_time_has_timed_out(cluster, name):
    job = cluster.submit("sleep 60", f"--job-name={name}", "--time=1")
    cluster.until(job, "RUNNING")
    cluster.end_soon(job, 1)
    assert ended(job, name).state is State.TIMEOUT


def test_a_job_over_its_memory_is_killed(cluster, name):
    """Without cgroups SLURM has no word of its own for it: OUT_OF_MEMORY is what `cgroup.conf` sites see."""
    hungry = "srun python3 -c 'import time; held = bytearray(300 << 20); time.sleep(60)'"
    state = ended(cluster.submit(hungry, f"--job-name={name}"), name)
    assert (state.state, state.signal) == (State.FAILED, signal.SIGKILL)


def test_elements_of_an_array_are_told_apart(cluster, name):
    """A waiting element that is cancelled leaves no trace without accounting."""
    array = cluster.submit("test $SLURM_ARRAY_TASK_ID = 1 && exit 5; sleep 60", f"--job-name={name}", "--array=1-9:2%2")
    jobs = [f"{array}_{index}" for index in (1, 3, 5, 7, 9)]
    assert ended(jobs[0], name).exit_code == 5
    cluster.until(jobs[2], "RUNNING")
    cluster.run("scancel", jobs[1], jobs[3])
    assert ended(jobs[1], name).state is State.CANCELLED
    assert ended(jobs[3], name) == JobState(jobs[3], State.GONE, name)
    told = named(name)
    assert (told[jobs[2]].state, told[jobs[4]].is_live) == (State.RUNNING, True)
    assert set(told) == {*jobs} - {jobs[3]}
    cluster.run("scancel", array)


def test_many_waiting_elements_are_all_told(cluster, name):
    """SLURM shortens the list of an array's elements unless it is asked not to."""
    holes = ",".join(str(index) for index in range(10) if index % 3)
    array = cluster.submit("true", f"--job-name={name}", f"--array={holes}", "--hold")
    told = named(name)
    assert set(told) == {f"{array}_{index}" for index in range(10) if index % 3}
    assert all(state.never_starts for state in told.values())
    cluster.run("scancel", array)


def test_a_requeued_job_waits_and_runs_again(cluster, name):
    job = cluster.submit("sleep 60", f"--job-name={name}")
    cluster.until(job, "RUNNING")
    cluster.run("scontrol", "requeue", job)
    cluster.until(job, "PENDING")
    assert states([job], name)[job].state is State.PENDING
    cluster.run("scancel", job)


@pytest.mark.slow
def test_a_job_that_may_not_be_requeued_fails_with_its_node(cluster, name):
    job = cluster.submit("sleep 60", f"--job-name={name}", "--no-requeue")
    cluster.until(job, "RUNNING")
    node = states([job], name)[job].node
    cluster.kill_node(node)
    state = ended(job, name)
    assert (state.state, state.node) == (State.NODE_FAIL, node)


def test_a_preempted_job_that_may_not_be_requeued_says_so(cluster, name):
    low = cluster.submit("sleep 60", f"--job-name={name}", "--no-requeue", "--exclusive", "--nodelist=node1")
    cluster.until(low, "RUNNING")
    cluster.submit("true", "--partition=urgent", "--exclusive", "--nodelist=node1")
    assert ended(low, name).state is State.PREEMPTED


def test_a_job_that_slurm_does_not_know_is_gone(cluster, name):
    assert states(["4242424"], name) == {"4242424": JobState("4242424", State.GONE, name)}


def test_an_id_that_slurm_has_given_away_again_is_gone(cluster, name):
    """Ids begin anew on a cluster that has lost its memory; the name tells whose job it is."""
    job = cluster.submit("sleep 60", "--job-name=of-somebody-else")
    assert states([job], name)[job].state is State.GONE
    cluster.run("scancel", job)


@pytest.mark.slow
def test_while_the_controller_is_silent_nothing_is_gone(cluster, name):
    job = cluster.submit("sleep 60", f"--job-name={name}")
    cluster.until(job, "RUNNING")
    cluster.stop_controller()
    told = states([job, "4242424"], name)
    assert {state.state for state in told.values()} == {State.UNREACHABLE}
    assert all(state.is_live for state in told.values())
    assert "Unable to contact slurm controller" in told[job].reason
    cluster.start_controller()
    assert states([job], name)[job].state is State.RUNNING
    cluster.run("scancel", job)


def test_users_own_settings_do_not_hide_jobs(cluster, name, monkeypatch):
    for variable, value in {"SQUEUE_STATES": "RUNNING", "SQUEUE_USERS": "nobody", "SQUEUE_FORMAT2": "name"}.items():
        monkeypatch.setenv(variable, value)
    job = cluster.submit("true", f"--job-name={name}")
    assert ended(job, name).state is State.COMPLETED


def test_without_slurm_it_says_so_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"squeue: not found; .* → --launch local"):
        states(["1"], "any")


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("123", ["123"]),
        ("123_4", ["123_4"]),
        ("123_[4-6%2]", ["123_4", "123_5", "123_6"]),
        ("7_[1,4-8:2%3]", ["7_1", "7_4", "7_6", "7_8"]),
    ],
)
def test_elements_that_slurm_writes_as_one_are_counted_out(written, meant):
    assert list(elements(written)) == meant


def test_what_accounting_prints_is_understood():
    """Lines of `sacct` 22.05 with slurmdbd, in the order that is asked for."""
    lines = (
        "12_3|CANCELLED by 0|node1|00:01:05|2026-01-02T03:04:05|0:15|None|mine|\n"
        "12_4|OUT_OF_MEMORY|node2|1-00:00:01|Unknown|0:125|None|mine|\n"
        "12_[5-6%2]|PENDING|None assigned|00:00:00|Unknown|0:0|None|mine|\n"
        "12_7|COMPLETED|node2|00:00:01|Unknown|0:0|None|another|\n"
    )
    told = queue._by_id(lines, "mine")
    assert set(told) == {"12_3", "12_4", "12_5", "12_6"}
    assert (told["12_3"].state, told["12_3"].elapsed_s) == (State.CANCELLED, 65)
    assert told["12_3"].start == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert (told["12_4"].state, told["12_4"].elapsed_s) == (State.OUT_OF_MEMORY, 86401)
    assert str(told["12_4"]) == "out of memory on node2 after 86401 s"
    assert told["12_5"] == JobState("12_5", State.PENDING, "mine")
