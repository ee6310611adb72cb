"""The order in which processes of one machine take jobs."""

from dataclasses import replace

import pytest

from harness.plan.job import jobs
from harness.plan.plan import Plan
from harness.run.agenda import Agenda
from harness.store.store import Store
from harness.suite import load_suite
from tests.helpers.fake_jobs import fake_job


@pytest.fixture
def mini(tmp_path):
    """Two models, a dataset, OnceEdit and the unedited model: artifacts that need each other."""
    only = ["method=none,onceedit", "model=llama2-7b,gpt-j-6b", "dataset=zsre"]
    return Plan(load_suite("suites/main_table.yaml", scale="mini", only=only, edits=5), Store(tmp_path / "store"))


def agenda(todo, **options):
    return Agenda(todo, "store", "cpu", 1, **options)


def places(batch):
    return [job.place for job in batch.jobs]


@pytest.mark.parametrize(("packing", "processes"), [(1, 1), (3, 2), (100, 2)])
def test_every_job_is_taken_once_and_after_what_it_needs(mini, packing, processes):
    todo, settled, taken = jobs(mini), set(), []
    of_jobs = agenda(todo, packing=packing, processes=processes)
    while batch := of_jobs.take():
        assert len(batch.jobs) <= packing
        assert len({job.models[:1] for job in batch.jobs}) == 1
        for job in batch.jobs:
            assert settled.issuperset(job.needs), job.place
        for place in places(batch):
            settled.add(place)
            of_jobs.settled(place)
            taken.append(place)
    assert of_jobs.is_empty
    assert sorted(taken) == sorted(job.place for job in todo)


def test_a_cell_does_not_wait_for_what_it_does_not_need():
    slow, quick = fake_job("slow"), fake_job("quick")
    waits, goes = fake_job("waits", needs=(slow.place,)), fake_job("goes", needs=(quick.place,))
    of_jobs = agenda([slow, quick, waits, goes])
    assert places(of_jobs.take()) == [slow.place]
    assert places(of_jobs.take()) == [quick.place]
    assert of_jobs.take() is None
    of_jobs.settled(quick.place)
    assert places(of_jobs.take()) == [goes.place]
    assert of_jobs.take() is None
    assert not of_jobs.is_empty
    of_jobs.settled(slow.place)
    assert places(of_jobs.take()) == [waits.place]


def test_a_process_goes_on_with_the_model_that_it_holds(mini):
    one, other = mini.suite.models
    todo = [replace(fake_job(str(n)), models=(model,)) for n, model in enumerate([one, one, other, other])]
    of_jobs = agenda(todo)
    assert places(of_jobs.take()) == [todo[0].place]
    assert places(of_jobs.take(held=other)) == [todo[2].place]


def test_a_batch_leaves_the_other_processes_their_share():
    todo = [fake_job(str(n)) for n in range(5)]
    of_jobs = agenda(todo, packing=8, processes=2)
    assert [len(of_jobs.take().jobs) for _ in range(3)] == [3, 1, 1]


def test_jobs_of_a_dead_process_are_taken_first():
    todo = [fake_job(name) for name in "abc"]
    of_jobs = agenda(todo, packing=2)
    of_jobs.put_back(of_jobs.take().jobs[1:])
    assert places(of_jobs.take()) == [todo[1].place, todo[2].place]
