"""Batches: what goes into one, and how its jobs are settled."""

import pickle

import pytest

from harness.plan.job import jobs
from harness.plan.plan import Plan
from harness.run.jobs import Batch, reopen, run_batch, waves
from harness.run.outcome import Outcome, record_failure
from harness.store.store import DONE, Store
from harness.suite import load_suite
from tests.helpers.fake_jobs import RecordingWatcher
from tests.helpers.small_suites import copy_home, write_suite


@pytest.fixture
def plan(home, tmp_path):
    return Plan(load_suite(home / "small.yaml"), Store(tmp_path / "store"))


@pytest.fixture
def mini(tmp_path):
    """Two models, a dataset, OnceEdit and the unedited model: artifacts that need each other."""
    only = ["method=none,onceedit", "model=llama2-7b,gpt-j-6b", "dataset=zsre"]
    return Plan(load_suite("suites/main_table.yaml", scale="mini", only=only, edits=5), Store(tmp_path / "store"))


def batch(plan, wanted, **changes):
    return Batch("one", plan.store.root, tuple(wanted), "cpu", 1, **changes)


def folder_of(plan, job):
    return plan.store.folder(job.place)


def test_a_batch_travels_to_another_process_as_it_is(mini):
    for batches in waves(mini, jobs(mini), 4):
        for made in batches:
            again = pickle.loads(pickle.dumps(made))
            assert again == made
            assert [job.place for job in again.jobs] == [job.place for job in made.jobs]


def test_batches_of_a_wave_need_only_what_earlier_waves_build_and_hold_each_job_once(mini):
    todo, built = jobs(mini), set()
    made = waves(mini, todo, 3)
    for batches in made:
        now = [job for batch in batches for job in batch.jobs]
        for job in now:
            assert set(job.needs) <= built, job.place
        built |= {job.place for job in now if not job.is_cell}
    placed = [job.place for batches in made for batch in batches for job in batch.jobs]
    assert sorted(placed) == sorted(job.place for job in todo)
    assert all(job.is_cell for batch in made[-1] for job in batch.jobs)
    assert len({batch.name for batches in made for batch in batches}) == sum(map(len, made))
    assert len(made) == 4, "models; an edited plug-in; the relative states that are made of it; cells"


@pytest.mark.parametrize(("packing", "sizes"), [(1, [1] * 8), (3, [3, 1, 3, 1]), (100, [4, 4])])
def test_cells_on_one_model_share_batches_and_never_with_another_model(plan, home, packing, sizes):
    plan = Plan(load_suite(write_suite(home / "seeds.yaml", seeds=[0, 1])), plan.store)
    batches = waves(plan, jobs(plan), packing)[-1]
    assert [len(made.jobs) for made in batches] == sizes
    for made in batches:
        assert len({job.work.model for job in made.jobs}) == 1


def test_what_is_built_or_done_is_no_job(plan):
    todo = jobs(plan)
    for job in (todo[0], todo[-1]):
        with folder_of(plan, job).writing():
            pass
    assert jobs(plan) == todo[1:-1]


def test_a_batch_settles_its_jobs_in_order_and_tells_of_each(plan):
    todo, log = jobs(plan), RecordingWatcher()
    run_batch(batch(plan, todo), log)
    assert log.events == [(word, job.place) for job in todo for word in ("began", "ended")]
    assert all(outcome == Outcome(outcome.seconds) and outcome.seconds > 0 for outcome in log.outcomes)
    assert all(folder_of(plan, job).is_done for job in todo)


def test_a_batch_that_is_run_again_does_only_what_is_not_settled(plan):
    todo, log = jobs(plan), RecordingWatcher()
    builds = [job for job in todo if not job.is_cell]
    done, failed, *rest = [job for job in todo if job.is_cell]
    run_batch(batch(plan, [*builds, done]), RecordingWatcher())
    record_failure(plan.store, failed, "it rained")
    before = (folder_of(plan, done).path / DONE).stat().st_mtime_ns
    run_batch(batch(plan, todo), log)
    assert [place for word, place in log.events if word == "began"] == [job.place for job in rest]
    assert (folder_of(plan, done).path / DONE).stat().st_mtime_ns == before
    assert folder_of(plan, failed).failure == "it rained"


def test_earlier_failures_are_to_do_again_and_stay_known_until_they_are(plan):
    first = jobs(plan)[0]
    record_failure(plan.store, first, "it rained", "a long story")
    folder = folder_of(plan, first)
    assert folder.is_settled
    reopen(plan.store, jobs(plan))
    assert (folder.is_settled, folder.failure, folder.has_failed) == (False, None, True)
    assert (folder.path / "log.txt").read_text() == "a long story"
    with folder.writing():
        pass
    assert (folder.is_done, folder.has_failed) == (True, False)


def test_what_needs_a_failed_artifact_fails_for_its_reason_and_the_rest_is_run(plan):
    todo, log = jobs(plan), RecordingWatcher()
    first = todo[0]
    record_failure(plan.store, first, "it rained")
    run_batch(batch(plan, todo), log)
    for job in todo[1:]:
        needs_it = first.place in job.needs
        assert folder_of(plan, job).failure == ("it rained" if needs_it else None)
        assert (("began", job.place) in log.events) is not needs_it
        assert ("ended", job.place) in log.events
    assert [outcome.reason for outcome in log.outcomes].count("it rained") == 2


def test_what_needs_an_artifact_that_is_neither_built_nor_failed_is_left_alone(plan):
    cells = [job for job in jobs(plan) if job.is_cell]
    log, waiting = RecordingWatcher(), batch(plan, cells)
    run_batch(waiting, log)
    assert log.events == []
    assert waiting.unsettled() == cells


def test_a_need_that_another_node_has_written_is_waited_for(plan, monkeypatch):
    todo = jobs(plan)
    builds, cell = todo[:2], todo[2]
    run_batch(batch(plan, builds), RecordingWatcher())
    folder = folder_of(plan, builds[0]).path
    hidden = folder.rename(folder.with_name("not-seen-yet"))
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            hidden.rename(folder)

    monkeypatch.setattr("harness.run.jobs.time.sleep", sleep)
    run_batch(batch(plan, [cell], patience_s=10), RecordingWatcher())
    assert folder_of(plan, cell).is_done
    assert slept == [1, 1, 1]


def test_an_artifact_that_cannot_be_built_is_recorded_with_its_traceback_and_tried_again(home, tmp_path):
    spoilt = copy_home(home, tmp_path / "home")
    plan = Plan(load_suite(spoilt / "small.yaml"), Store(tmp_path / "store"))
    damaged = spoilt / "llama" / "model.safetensors"
    whole = (home / "llama" / "model.safetensors").read_bytes()
    builds = [job for job in jobs(plan) if not job.is_cell]
    damaged.write_bytes(whole[:-100])
    run_batch(batch(plan, builds), RecordingWatcher())
    failed = [job for job in builds if folder_of(plan, job).failure]
    assert [job.work.inputs["model"].name for job in failed] == ["tiny/llama"]
    folder = folder_of(plan, failed[0])
    assert "Traceback" in (folder.path / "log.txt").read_text()
    assert folder.read("artifact.json")["key"] == failed[0].work.key
    damaged.write_bytes(whole)
    reopen(plan.store, builds)
    run_batch(batch(plan, builds), RecordingWatcher())
    assert folder.is_done
