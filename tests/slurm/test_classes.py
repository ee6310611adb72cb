"""Which resource class a job is given, and what may share a batch."""

import pytest

from harness.plan.estimate import together
from harness.plan.job import jobs
from harness.plan.plan import Plan
from harness.run.jobs import waves
from harness.store.store import Store
from harness.suite import load_suite
from slurm.profile import SlurmProfile
from slurm.retry import first_class
from slurm.submit import arrays, too_large
from tests.helpers.small_suites import write_suite


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
PACKED = PROFILE.model_copy(update={"packing": 8, "classes": PROFILE.classes[1:]})
LARGE = [{"name": "llama2-7b", "weights": "random"}]


def batch_of(plan, packing=1):
    return waves(plan, jobs(plan), packing)[-1][0]


def class_of(plan):
    """Name of the class of the plan's first cell."""
    return PROFILE.resources[first_class(batch_of(plan).jobs[0], PROFILE.resources)].name


def first_that_holds(batch):
    return next(each.name for each in PROFILE.resources if each.holds(together(batch.jobs)))


def test_a_small_cell_gets_the_first_class_and_a_large_model_the_first_with_its_memory(plan_of):
    assert class_of(plan_of()) == "small"
    assert class_of(plan_of(models=LARGE, methods=["none"])) == "large"


def test_times_of_a_batch_add_up_and_memory_does_not(plan_of):
    plan = plan_of(seeds=[0, 1, 2, 3, 4, 5, 6, 7])
    cells = jobs(plan)[2:10]
    alone, all_eight = together(cells[:1]), together(cells)
    assert all_eight.memory_bytes == alone.memory_bytes
    assert all_eight.seconds > alone.seconds + 7 * 2
    assert first_that_holds(batch_of(plan, packing=1)) == "small"
    assert first_that_holds(batch_of(plan, packing=8)) == "long"


def test_a_batch_is_cut_where_no_class_would_hold_it(plan_of):
    plan = plan_of(seeds=list(range(8)))
    small = PROFILE.resources[0]
    batches = waves(plan, jobs(plan), 16, lambda pack: small.holds(together(pack)))[-1]
    assert 1 < len(batches[0].jobs) < 16
    assert all(small.holds(together(batch.jobs)) for batch in batches)


def test_cells_of_one_class_share_batches_whatever_cells_of_another_are_between_them(plan_of):
    """Cells come method by method; every second would else end a batch."""
    plan = plan_of(seeds=[0, 1, 2], models=["tiny/llama"])
    todo = jobs(plan)
    numbers = {job.place: number % 2 for number, job in enumerate(todo)}
    batches = [(batch, number) for batch, number in arrays(plan, PACKED, {job.place: job for job in todo}, numbers, 99)]
    cells = [(batch, number) for several, number in batches for batch in several if batch.jobs[0].is_cell]
    assert sorted((len(batch.jobs), number) for batch, number in cells) == [(3, 0), (3, 1)]
    assert all({numbers[job.place] for job in batch.jobs} == {number} for batch, number in cells)


def test_what_fits_nowhere_is_tried_in_the_largest_and_noted(plan_of):
    tiny = PROFILE.model_copy(update={"classes": PROFILE.classes[:1]})
    large, small = (batch_of(plan_of(**changes)).jobs for changes in ({"models": LARGE, "methods": ["none"]}, {}))
    assert first_class(large[0], tiny.resources) == 0
    [note] = too_large(large, tiny)
    assert "13 GiB" in note
    assert "class 'small' has (2 GiB, 1 min)" in note
    assert too_large(small, PROFILE) == []


def test_a_second_model_counts_and_so_does_a_model_that_is_trained(tmp_path):
    suite = load_suite("suites/main_table.yaml", scale="mini", only=["method=none,onceedit"], edits=5)
    todo = jobs(Plan(suite, Store(tmp_path)))
    by_title = {job.title: together([job]) for job in todo}
    cells = [by_title[f"{method} on tiny/llama, zsre"] for method in ("none", "onceedit")]
    assert cells[0].memory_bytes < cells[1].memory_bytes
    trained = [job for job in todo if not job.is_cell and job.work.name == "tiny-model"]
    assert trained
    assert all(together([job]).seconds > 30 for job in trained), "on a CPU a training takes a while"
