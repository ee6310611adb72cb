"""Which resource class a unit is given."""

import pytest

from harness.plan.plan import Plan
from harness.run.task import BuildArtifact
from harness.run.work import to_do, waves
from harness.store.store import Store
from harness.suite import load_suite
from slurm.profile import SlurmProfile
from slurm.resources import choose, fits, needs
from tests.helpers.small_suites import write_home, write_suite


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    write_home(folder)
    return folder


@pytest.fixture
def plan_of(home, tmp_path):
    def made(**changes):
        return Plan(load_suite(write_suite(home / "other.yaml", **changes)), Store(tmp_path / "store"))

    return made


PROFILE = SlurmProfile(
    launcher="slurm",
    classes=[
        {"name": "small", "mem_gb": 2, "time_min": 1},
        {"name": "long", "mem_gb": 2, "time_min": 600},
        {"name": "large", "mem_gb": 24, "time_min": 600},
    ],
)
LARGE = [{"name": "llama2-7b", "weights": "random"}]


def unit_of(plan, packing=1):
    return waves(plan, to_do(plan), packing)[-1][0]


def test_a_small_cell_gets_the_first_class_and_a_large_model_the_first_with_its_memory(plan_of):
    assert choose(unit_of(plan_of()), PROFILE)[0].name == "small"
    assert choose(unit_of(plan_of(models=LARGE, methods=["none"])), PROFILE)[0].name == "large"


def test_times_of_a_pack_add_up_and_memory_does_not(plan_of):
    plan = plan_of(seeds=[0, 1, 2, 3, 4, 5, 6, 7])
    tasks = to_do(plan)[2:10]
    alone, together = needs(tasks[:1], "cpu"), needs(tasks, "cpu")
    assert together.memory_bytes == alone.memory_bytes
    assert together.seconds > alone.seconds + 7 * 2
    assert choose(unit_of(plan, packing=1), PROFILE)[0].name == "small"
    assert choose(unit_of(plan, packing=8), PROFILE)[0].name == "long"


def test_a_pack_is_cut_where_no_class_would_fit_it(plan_of):
    plan = plan_of(seeds=list(range(8)))
    small = PROFILE.resources[0]
    units = waves(plan, to_do(plan), 16, lambda tasks: fits(tasks, plan.device, small))[-1]
    assert 1 < len(units[0].tasks) < 16
    assert all(fits(unit.tasks, plan.device, small) for unit in units)


def test_what_fits_nowhere_is_tried_in_the_largest_and_said(plan_of):
    tiny = PROFILE.model_copy(update={"classes": PROFILE.classes[:1]})
    chosen, note = choose(unit_of(plan_of(models=LARGE, methods=["none"])), tiny)
    assert chosen.name == "small"
    assert "16 GiB" in note
    assert "class 'small' has (2 GiB, 1 min)" in note
    assert choose(unit_of(plan_of()), PROFILE)[1] is None


def test_a_second_model_counts_and_so_does_a_model_that_is_trained(tmp_path):
    suite = load_suite("suites/main_table.yaml", scale="mini", only=["method=none,onceedit"], edits=5)
    tasks = to_do(Plan(suite, Store(tmp_path)))
    by_title = {task.title: needs([task], "cpu") for task in tasks}
    cells = [by_title[f"{method} on tiny/llama, zsre"] for method in ("none", "onceedit")]
    assert cells[0].memory_bytes < cells[1].memory_bytes
    trained = [task for task in tasks if isinstance(task, BuildArtifact) and task.spec.name == "tiny-model"]
    assert trained
    assert all(needs([task], "cpu").seconds > 30 for task in trained), "on a CPU a training takes a while"
