"""Units of work: what goes into one, and how the tasks of one are settled."""

import pickle

import pytest
import torch

from harness.plan.plan import Plan
from harness.run.task import BuildArtifact, Outcome, RunCell
from harness.run.work import Unit, reopen, run_unit, to_do, waves
from harness.store.store import DONE, Store
from harness.suite import load_suite
from tests.helpers.small_suites import write_home, write_suite
from tests.helpers.watching import Log, copy_home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("home")
    write_home(folder)
    return folder


@pytest.fixture
def plan(home, tmp_path):
    return Plan(load_suite(home / "small.yaml"), Store(tmp_path / "store"))


@pytest.fixture
def mini(tmp_path):
    """Two models, a data set, OnceEdit and the unedited model: artifacts that need each other."""
    only = ["method=none,onceedit", "model=llama2-7b,gpt-j-6b", "dataset=zsre"]
    return Plan(load_suite("suites/main_table.yaml", scale="mini", only=only, edits=5), Store(tmp_path / "store"))


def unit(plan, tasks, **changes):
    return Unit("one", plan.store.root, tuple(tasks), "cpu", 1, **changes)


def test_a_unit_travels_to_another_process_as_it_is(mini):
    for units in waves(mini, to_do(mini), 4):
        for made in units:
            again = pickle.loads(pickle.dumps(made))
            assert again == made
            assert [task.place for task in again.tasks] == [task.place for task in made.tasks]


def test_units_of_a_wave_need_only_what_earlier_waves_build_and_hold_each_task_once(mini):
    tasks, built = to_do(mini), set()
    made = waves(mini, tasks, 3)
    for units in made:
        now = [task for unit in units for task in unit.tasks]
        for task in now:
            assert {need.key for need in task.needs} <= built, task.place
        built |= {task.spec.key for task in now if isinstance(task, BuildArtifact)}
    placed = [task.place for units in made for unit in units for task in unit.tasks]
    assert sorted(placed) == sorted(task.place for task in tasks)
    assert all(isinstance(task, RunCell) for unit in made[-1] for task in unit.tasks)
    assert len({unit.name for units in made for unit in units}) == sum(map(len, made))
    assert len(made) == 3, "models; what is made of them; cells"


@pytest.mark.parametrize(("packing", "sizes"), [(1, [1] * 8), (3, [3, 1, 3, 1]), (100, [4, 4])])
def test_cells_on_one_model_share_units_and_never_with_another_model(plan, home, packing, sizes):
    plan = Plan(load_suite(write_suite(home / "seeds.yaml", seeds=[0, 1])), plan.store)
    units = waves(plan, to_do(plan), packing)[-1]
    assert [len(made.tasks) for made in units] == sizes
    for made in units:
        assert len({task.cell.model for task in made.tasks}) == 1


def test_what_is_built_and_done_is_no_work(plan):
    tasks = to_do(plan)
    for task in (tasks[0], tasks[-1]):
        with task.folder(plan.store).writing():
            pass
    assert to_do(plan) == tasks[1:-1]


def test_a_unit_settles_its_tasks_in_order_and_tells_of_each(plan):
    tasks, log = to_do(plan), Log()
    run_unit(unit(plan, tasks), log)
    assert log.events == [(word, task.place) for task in tasks for word in ("began", "ended")]
    assert all(outcome == Outcome(outcome.seconds) and outcome.seconds > 0 for outcome in log.outcomes)
    assert all(task.folder(plan.store).is_done for task in tasks)


def test_a_unit_that_is_run_again_does_only_what_is_not_settled(plan):
    tasks, log = to_do(plan), Log()
    builds = [task for task in tasks if isinstance(task, BuildArtifact)]
    done, failed, *rest = [task for task in tasks if isinstance(task, RunCell)]
    run_unit(unit(plan, [*builds, done]), Log())
    failed.fail(plan.store, "it rained")
    before = (done.folder(plan.store).path / DONE).stat().st_mtime_ns
    run_unit(unit(plan, tasks), log)
    assert [place for word, place in log.events if word == "began"] == [task.place for task in rest]
    assert (done.folder(plan.store).path / DONE).stat().st_mtime_ns == before
    assert failed.folder(plan.store).failure == "it rained"


def test_earlier_failures_are_to_do_again_and_stay_known_until_they_are(plan):
    first = to_do(plan)[0]
    first.fail(plan.store, "it rained", "a long story")
    folder = first.folder(plan.store)
    assert folder.is_settled
    reopen(plan.store, to_do(plan))
    assert (folder.is_settled, folder.failure, folder.has_failed) == (False, None, True)
    assert (folder.path / "log.txt").read_text() == "a long story"
    with folder.writing():
        pass
    assert (folder.is_done, folder.has_failed) == (True, False)


def test_what_needs_a_failed_artifact_fails_for_its_reason_and_the_rest_is_run(plan):
    tasks, log = to_do(plan), Log()
    first = tasks[0]
    first.fail(plan.store, "it rained")
    run_unit(unit(plan, tasks), log)
    for task in tasks[1:]:
        needs_it = first.spec in task.needs
        assert task.folder(plan.store).failure == ("it rained" if needs_it else None)
        assert (("began", task.place) in log.events) is not needs_it
        assert ("ended", task.place) in log.events
    assert [outcome.reason for outcome in log.outcomes].count("it rained") == 2


def test_what_needs_an_artifact_that_is_neither_built_nor_failed_is_left_alone(plan):
    cells = [task for task in to_do(plan) if isinstance(task, RunCell)]
    log, waiting = Log(), unit(plan, cells)
    run_unit(waiting, log)
    assert log.events == []
    assert waiting.unsettled() == cells


def test_a_need_that_another_node_has_written_is_waited_for(plan, monkeypatch):
    tasks = to_do(plan)
    builds, cell = tasks[:2], tasks[2]
    run_unit(unit(plan, builds), Log())
    folder = builds[0].folder(plan.store).path
    hidden = folder.rename(folder.with_name("not-seen-yet"))
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        if len(slept) == 3:
            hidden.rename(folder)

    monkeypatch.setattr("harness.run.work.time.sleep", sleep)
    run_unit(unit(plan, [cell], patience_s=10), Log())
    assert cell.folder(plan.store).is_done
    assert slept == [1, 1, 1]


def test_an_artifact_that_cannot_be_built_is_recorded_with_its_traceback_and_tried_again(home, tmp_path):
    spoilt = copy_home(home, tmp_path / "home")
    plan = Plan(load_suite(spoilt / "small.yaml"), Store(tmp_path / "store"))
    damaged = spoilt / "llama" / "model.safetensors"
    whole = (home / "llama" / "model.safetensors").read_bytes()
    builds = [task for task in to_do(plan) if isinstance(task, BuildArtifact)]
    damaged.write_bytes(whole[:-100])
    run_unit(unit(plan, builds), Log())
    failed = [task for task in builds if task.folder(plan.store).failure]
    assert [task.spec.inputs["model"].name for task in failed] == ["tiny/llama"]
    folder = failed[0].folder(plan.store)
    assert "Traceback" in (folder.path / "log.txt").read_text()
    assert folder.read("artifact.json")["key"] == failed[0].spec.key
    damaged.write_bytes(whole)
    reopen(plan.store, builds)
    run_unit(unit(plan, builds), Log())
    assert folder.is_done
