"""What clusters do to jobs, done to real ones: every cell ends DONE or FAILED with a reason, once, with the local run's bits."""

import contextlib
import json
import shutil
import time

import pytest

from tests.slurm.cluster.sweep import Sweep, kill

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def assert_whole(sweep: Sweep, local: Sweep, failed: dict[int, str] | None = None, times: int = 1) -> None:
    """Every cell is settled, those that failed for these reasons and no other is lost or different.

    Args:
        times: how often each edit of a cell that is done has come to its end; more than one for a sequence.
    """
    failed = failed or {}
    reasons = sweep.failures()
    assert sorted(reasons) == sorted(failed), sweep.story()
    for number, words in failed.items():
        assert words in reasons[number]
        assert sweep.ended(number) == []
    done = sorted(set(range(sweep.cells)) - set(failed))
    assert sweep.done() == done, sweep.story()
    for number in done:
        assert len(sweep.ended(number)) == times, sweep.story()
    of = tuple(f"p{number}-" for number in done)
    assert {name: told for name, told in sweep.results().items() if name.startswith(of)} == {
        name: told for name, told in local.results().items() if name.startswith(of)
    }
    assert list(sweep.store.glob("cells/.*")) == []
    sweep.until(lambda: not {"RUNNING", "PENDING"} & set(sweep.jobs().values()), limit_s=30)


@pytest.fixture(scope="module")
def struck(running_cluster, local, tmp_path_factory):
    """One launch: cell 0 is left alone, 1 cancelled, 2 killed, 3 put back into the queue, 4 killed twice."""
    sweep = local.start(tmp_path_factory.mktemp("struck"), cells=5, profile={"array_parallelism": 5})
    sweep.hold(*range(5))
    with sweep.driven() as driver:
        sweep.until_begun(*range(5))
        running_cluster.run("scancel", sweep.begun(1)[0].job)
        running_cluster.run("scontrol", "requeue", sweep.begun(3)[0].job)
        kill(sweep.begun(2)[0])
        kill(sweep.begun(4)[0])
        sweep.until_begun(2, 3, 4, times=2)
        kill(sweep.begun(4)[1])
        sweep.until(lambda: 4 in sweep.failures())
        sweep.release()
        assert sweep.finish(driver) == 1
    return sweep


def test_cells_whose_jobs_are_struck_are_settled_once_and_equal_the_local_ones(struck, local):
    assert_whole(struck, local.sweep, failed={1: "cancelled", 4: "signal 9"})
    assert len(struck.begun(0)) == 1


def test_a_cell_names_the_command_of_its_launch_and_its_slurm_job(struck):
    origin = struck.provenance(0)
    assert origin["command"].startswith("python -m harness run suite.yaml --store")
    assert origin["job"] == struck.begun(0)[0].job


def test_a_cell_whose_job_somebody_cancels_is_not_begun_again(struck):
    assert len(struck.begun(1)) == 1


def test_a_killed_worker_is_followed_by_another_job(struck):
    first, second = struck.begun(2)
    assert first.job != second.job


def test_a_requeued_job_is_waited_for_and_not_submitted_again(struck):
    first, second = struck.begun(3)
    assert first.job == second.job


def test_a_worker_that_is_killed_again_is_given_up(struck):
    assert len(struck.begun(4)) == 2


def test_the_same_command_runs_what_failed_and_nothing_else(struck, local, cluster):
    before = [len(struck.begun(number)) for number in range(5)]
    assert struck.run() == 0
    assert_whole(struck, local.sweep)
    assert [len(struck.begun(number)) - count for number, count in enumerate(before)] == [0, 1, 0, 0, 1]


def test_a_cell_whose_job_is_cancelled_while_it_waits_has_failed(cluster, local, tmp_path):
    """SLURM forgets a waiting element of an array as soon as it is cancelled."""
    sweep = local.start(tmp_path / "sweep", profile={"additional": {"hold": True}})
    with sweep.driven() as driver:
        sweep.until(lambda: len(sweep.jobs()) == 2)
        cancelled, other = sorted(sweep.jobs())
        time.sleep(3)  # the driver has seen it wait
        cluster.run("scancel", cancelled)
        cluster.run("scontrol", "release", other)
        assert sweep.finish(driver) == 1
    assert_whole(sweep, local.sweep, failed={0: "cancelled"})


def test_cells_whose_artifact_is_cancelled_have_failed_with_its_reason(cluster, local, tmp_path):
    sweep = local.start(tmp_path / "sweep", profile={"additional": {"hold": True}})
    shutil.rmtree(sweep.store / "artifacts")
    with sweep.driven() as driver:
        sweep.until(lambda: len(sweep.jobs()) == 3)
        artifact, *cells = sorted(sweep.jobs(), key=lambda job: int(job.partition("_")[0]))
        cluster.run("scancel", artifact)
        cluster.run("scontrol", "release", *cells)
        assert sweep.finish(driver) == 1
    assert_whole(sweep, local.sweep, failed={0: "cancelled", 1: "cancelled"})


def test_a_cell_out_of_time_gets_the_next_class_once(cluster, local, tmp_path):
    """Cell 0 is done in time, 1 in the larger class, 2 in none."""
    classes = [{"name": "small", "mem_gb": 2, "time_min": 5}, {"name": "large", "mem_gb": 2, "time_min": 10}]
    sweep = local.start(tmp_path / "sweep", cells=3, profile={"mem_gb": None, "time_min": None, "classes": classes})
    sweep.hold(1, 2)
    with sweep.driven() as driver:
        for times in (1, 2):
            sweep.until_begun(1, 2, times=times)
            if times == 2:
                sweep.release(1)
                sweep.until(lambda: 1 in sweep.done())
            for number in {1: (1, 2), 2: (2,)}[times]:
                cluster.end_soon(sweep.begun(number)[-1].job, 1)
        assert sweep.finish(driver) == 1
    assert_whole(sweep, local.sweep, failed={2: "timeout"})
    assert [len(sweep.begun(number)) for number in range(3)] == [1, 2, 2]


SEQUENCE = {"schedule": {"sequential": {"block": 2, "score_at": [2, 8]}}}


@pytest.fixture(scope="module")
def local_sequence(local, tmp_path_factory):
    sweep = local.start(tmp_path_factory.mktemp("sequence"), cells=1, suite=SEQUENCE)
    assert sweep.run("local") == 0
    return sweep


def out(sweep):
    """What jobs of a sweep have printed."""
    return "".join(file.read_text() for file in sweep.store.glob("launches/*/submitit/*_log.*"))


@pytest.fixture(scope="module")
def out_of_time(running_cluster, local, tmp_path_factory):
    """Two launches side by side, because SLURM takes its time: by whether their jobs are warned before their end."""
    sweeps = {
        is_warned: local.start(
            tmp_path_factory.mktemp("sequences"),
            cells=1,
            suite=SEQUENCE,
            profile={"signal_delay_s": 30 if is_warned else 0, "time_min": 2},
        )
        for is_warned in (True, False)
    }
    with contextlib.ExitStack() as stack:
        for sweep in sweeps.values():
            sweep.hold(0, after=1)
        drivers = {is_warned: stack.enter_context(sweep.driven()) for is_warned, sweep in sweeps.items()}
        for is_warned, sweep in sweeps.items():
            sweep.until_begun(0, times=2)
            running_cluster.end_soon(sweep.begun(0)[-1].job, 40 if is_warned else 1)
        for is_warned, sweep in sweeps.items():
            sweep.until_begun(0, times=3)
            sweep.release()
            assert sweep.finish(drivers[is_warned]) == 0
    return sweeps


@pytest.mark.parametrize("is_warned", [True, False])
def test_a_sequence_out_of_time_goes_on_from_its_last_block(is_warned, out_of_time, local_sequence, cluster):
    """With the signal submitit puts it back into the queue, without it the driver submits it again."""
    sweep = out_of_time[is_warned]
    assert_whole(sweep, local_sequence, times=4)
    begun = sweep.begun(0)
    assert (begun[1].job == begun[2].job) is is_warned
    assert ("SIGUSR2" in out(sweep)) is is_warned
    assert [start["edits"] for start in sweep.provenance(0)["resumed"]] == [2]


@pytest.mark.parametrize(("partition", "is_warned"), [("main", False), ("warned", True)])
def test_a_preempted_cell_runs_again_with_and_without_a_warning(partition, is_warned, cluster, local, tmp_path):
    cluster.warn_of_preemption(is_warned)
    profile = {"partition": partition, "signal_delay_s": 30, "time_min": 60}
    sweep = local.start(tmp_path / "sweep", cells=1, profile=profile)
    sweep.hold(0)
    with sweep.driven() as driver:
        sweep.until_begun(0)
        cluster.submit("true", "--partition=urgent", "--exclusive", "--nodes=2")
        sweep.until_begun(0, times=2)
        sweep.release()
        assert sweep.finish(driver) == 0
    assert_whole(sweep, local.sweep)
    first, second = sweep.begun(0)
    assert first.job == second.job
    assert ("SIGUSR2" in out(sweep)) is is_warned


def node_of(cluster, mark):
    return cluster.run("squeue", "--noheader", f"--jobs={mark.job}", "--format=%N")


def test_a_cell_whose_node_goes_down_runs_on_another(cluster, local, tmp_path):
    sweep = local.start(tmp_path / "sweep", cells=1)
    sweep.hold(0)
    with sweep.driven() as driver:
        sweep.until_begun(0)
        node = node_of(cluster, sweep.begun(0)[0])
        cluster.kill_node(node)
        sweep.until_begun(0, times=2)
        assert node_of(cluster, sweep.begun(0)[1]) != node
        sweep.release()
        assert sweep.finish(driver) == 0
    assert_whole(sweep, local.sweep)


def test_processes_that_outlive_the_daemon_of_their_node_spoil_nothing(cluster, local, tmp_path):
    """SLURM takes the node for down and starts the job on another: two processes write the same cell at the same time."""
    sweep = local.start(tmp_path / "sweep", cells=1)
    sweep.hold(0)
    with sweep.driven() as driver:
        sweep.until_begun(0)
        cluster.kill_node(node_of(cluster, sweep.begun(0)[0]), daemon_only=True)
        sweep.until_begun(0, times=2)
        sweep.release()
        assert sweep.finish(driver) == 0
    assert_whole(sweep, local.sweep, times=2)


def test_a_driver_that_is_killed_is_followed_by_one_that_takes_over_its_jobs(cluster, local, tmp_path):
    sweep = local.start(tmp_path / "sweep", cells=2)
    sweep.hold(0, 1)
    with sweep.driven() as driver:
        sweep.until_begun(0, 1)
        kill(driver)
    sweep.release(0)
    sweep.until(lambda: sweep.done() == [0])
    with sweep.driven() as driver:
        sweep.until(lambda: "continuing with" in sweep.log.read_text())
        time.sleep(3)
        sweep.release()
        assert sweep.finish(driver) == 0
    assert_whole(sweep, local.sweep)
    assert [len(sweep.begun(number)) for number in (0, 1)] == [1, 1]
    assert len(sweep.launches()) == 1


def test_a_launch_goes_on_while_the_controller_is_away(cluster, local, tmp_path):
    sweep = local.start(tmp_path / "sweep", cells=2, profile={"array_parallelism": 1})
    sweep.hold(0, 1)
    with sweep.driven() as driver:
        sweep.until_begun(0)
        cluster.stop_controller()
        sweep.until(lambda: "SLURM does not answer" in sweep.log.read_text())
        sweep.release()
        sweep.until(lambda: sweep.done() == [0])
        assert sweep.failures() == {}
        cluster.start_controller()
        assert sweep.finish(driver) == 0
    assert_whole(sweep, local.sweep)


def test_ids_that_a_new_cluster_gives_away_again_are_not_taken_for_jobs_of_the_launch(cluster, local, tmp_path):
    """The launch folder is gone on with; its ids are those of somebody else's jobs now."""
    sweep = local.start(tmp_path / "sweep", cells=2)
    cluster.forget()
    sweep.hold(0, 1)
    with sweep.driven() as driver:
        sweep.until_begun(0, 1)
        kill(driver)
    old = {sweep.begun(number)[0].job for number in (0, 1)}
    cluster.forget()
    array = old.pop().partition("_")[0]
    strange = cluster.submit("sleep 120", "--array=0-1", "--job-name=strange")
    while int(strange) < int(array):
        strange = cluster.submit("sleep 120", "--array=0-1", "--job-name=strange")
    sweep.release()
    assert sweep.run() == 0
    assert_whole(sweep, local.sweep)
    assert set(cluster.jobs("strange").values()) <= {"RUNNING", "PENDING"}
    for number in (0, 1):
        assert len(sweep.begun(number)) == 2
    cluster.run("scancel", "--name=strange")
    [launch] = sweep.launches()
    ended = [record for line in (launch / "jobs.jsonl").open() if "ended" in (record := json.loads(line))]
    assert ended
    assert {record["ended"]["state"] for record in ended} == {"gone"}
