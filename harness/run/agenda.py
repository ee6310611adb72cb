"""Which job a process of this machine takes next: one is ready as soon as what it needs is settled, whatever else still runs."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.plan.job import Job
from harness.run.jobs import Batch

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef


class Agenda:
    """Jobs in the order in which they are begun where several are ready, and the batches that are made of them.

    Artifacts are begun before cells, in the order of the plan, so that what most others wait for is built first.

    Args:
        todo: needs first, as `harness.plan.job.jobs` lists them.
        store, device, threads: as in a batch.
        packing: jobs of a batch, which all load the same model, at most.
        processes: how many take batches; a batch leaves each of the others its share of the ready jobs.
        shared_by: as in a batch.
    """

    def __init__(
        self,
        todo: Iterable[Job],
        store: Path,
        device: str,
        threads: int | None,
        packing: int = 1,
        processes: int = 1,
        shared_by: int = 1,
    ) -> None:
        self._waiting = list(todo)
        self._open = {job.place for job in self._waiting}
        self._like = Batch("", store, (), device, threads, shared_by=shared_by)
        self._packing, self._processes = packing, processes
        self._number = itertools.count(1)

    @property
    def is_empty(self) -> bool:
        """Whether all jobs have been taken."""
        return not self._waiting

    def take(self, held: "ModelRef | None" = None) -> Batch | None:
        """The next batch, of jobs on one model: on the one that the process has held before, if there are any.

        Returns:
            The batch, or None while all jobs that are left need something that is not settled.
        """
        ready = [job for job in self._waiting if self._open.isdisjoint(job.needs)]
        if not ready:
            return None
        models = [job.model for job in ready]
        model = held if held in models else models[0]
        share = -(-len(ready) // self._processes)
        jobs = [job for job, its in zip(ready, models, strict=True) if its == model][: min(self._packing, share)]
        taken = {job.place for job in jobs}
        self._waiting = [job for job in self._waiting if job.place not in taken]
        return replace(self._like, name=f"{next(self._number):05d}", jobs=tuple(jobs))

    def settled(self, place: str) -> None:
        """A job is done or has failed; those that need it may begin."""
        self._open.discard(place)

    def put_back(self, jobs: Sequence[Job]) -> None:
        """Jobs of a batch whose process has died, to be taken next."""
        self._waiting = [*jobs, *self._waiting]
