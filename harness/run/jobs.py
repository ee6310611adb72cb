"""Jobs in batches: what one process runs in order, and the code that does so for every launcher."""

import itertools
import os
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import Summary
from harness.errors import Memory
from harness.plan.cell import Cell
from harness.plan.job import Job
from harness.run.outcome import Outcome, record_failure
from harness.store.artifacts import ArtifactCache
from harness.store.store import Store

if TYPE_CHECKING:
    from harness.plan.plan import Plan
    from harness.run.progress import Watcher


@dataclass(frozen=True, slots=True)
class Batch:
    """Jobs that one process runs in order. Plain data that can be sent to another process.

    Attributes:
        name: unique within a launch, and fit for a file name.
        store: root of the results folder, as the process that runs the batch sees it.
        device, threads: as in the plan.
        patience_s: how long in total to wait for needs that are not there: a shared file system may show late what
            another node has written.
        shared_by: how many processes of the launch run batches on the device, at most.
    """

    name: str
    store: Path
    jobs: tuple[Job, ...]
    device: str
    threads: int | None
    patience_s: float = 0.0
    shared_by: int = 1

    def unsettled(self) -> list[Job]:
        """Jobs that are neither done nor failed."""
        store = Store(self.store)
        return [job for job in self.jobs if not store.folder(job.place).is_settled]

    def renamed(self, name: str) -> "Batch":
        """The same batch under another name."""
        return replace(self, name=name)


def waves(
    plan: "Plan",
    jobs: Sequence[Job],
    packing: int = 1,
    fits: Callable[[Sequence[Job]], bool] = lambda jobs: True,
    kind: Callable[[Job], Hashable] = lambda job: None,
) -> list[list[Batch]]:
    """Batches in waves: those of a wave need only what earlier waves build; cells are the last wave.

    Jobs on the same model share a batch, so that it is loaded once for them.

    Args:
        plan: that the jobs belong to.
        jobs: needs first, as `harness.plan.job.jobs` lists them.
        packing: jobs per batch, at most.
        fits: whether jobs of one kind may share a batch; one alone always may.
        kind: of a job; jobs of different kinds share none.
    """
    level: dict[str, int] = {}
    builds = [job for job in jobs if not job.is_cell]
    for build in builds:
        level[build.place] = 1 + max((level.get(need, 0) for need in build.needs), default=0)
    layers: list[list[Job]] = [[] for _ in range(max(level.values(), default=0))]
    for build in builds:
        layers[level[build.place] - 1].append(build)
    layers.append([job for job in jobs if job.is_cell])
    number = itertools.count(1)
    return [
        [
            Batch(f"{next(number):05d}-{_stem(pack[0])}", plan.store.root, pack, plan.device, plan.suite.threads)
            for pack in _packs(layer, packing, fits, kind)
        ]
        for layer in layers
        if layer
    ]


def run_batch(batch: Batch, watcher: "Watcher", *, larger: Collection[Memory] = ()) -> None:
    """Settle the jobs of a batch, one after the other.

    What is settled already is left alone, so a batch that was killed is simply run again. A job with a failed need fails
    for the same reason. A job with a need that is neither built nor failed is left untouched.

    Args:
        batch: the jobs.
        watcher: is told of each.
        larger: as in `Runner.run`.

    Raises:
        UserError: if the store cannot be written.
        InsufficientMemoryError: as `Runner.run`; the job that was running and those after it are not settled.
    """
    if not batch.unsettled():
        return
    prepare_torch(batch.threads)
    from harness.run.context import RunContext
    from harness.run.runner import Runner

    store = Store(batch.store)
    runner = Runner(store, RunContext(ArtifactCache(store), batch.device, watcher, batch.shared_by))
    patience_s = batch.patience_s
    for job in batch.jobs:
        if store.folder(job.place).is_settled:
            continue
        while (reason := _failed_need(job, store)) is None and _is_waiting(job, store) and patience_s > 0:
            time.sleep(1)
            patience_s -= 1
        if reason is not None:
            record_failure(store, job, reason)
            watcher.ended(job, Outcome(0.0, reason))
        elif not _is_waiting(job, store):
            watcher.began(job)
            watcher.ended(job, runner.run(job, larger=larger))


def reopen(store: Store, jobs: Iterable[Job]) -> None:
    """Forget earlier failures: from now on a job that has failed has failed in this launch, and is settled."""
    for job in jobs:
        store.folder(job.place).reopen()


def summarize(plan: "Plan", jobs: Sequence[Job]) -> Summary:
    """What has become of the cells of a plan, of which these jobs were to be run."""
    store = plan.store
    cells = {job.work.folder: store.folder(job.place) for job in jobs if isinstance(job.work, Cell)}
    others = [cell.folder for cell in plan.runnable if cell.folder not in cells]
    return Summary(
        finished=tuple(name for name, folder in cells.items() if folder.is_done),
        failed=tuple((name, reason) for name, folder in cells.items() if (reason := folder.failure) is not None),
        kept=tuple(name for name in others if store.cell(name).is_done),
    )


def prepare_torch(threads: int | None) -> None:
    """Make the same cell give the same bits: a fixed number of threads and deterministic kernels.

    Waiting threads soon sleep instead of spinning: next to any other busy process, spinning made training eight times slower.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    # filling would take a sixth of the training time, for memory that nothing reads
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _packs(
    jobs: Sequence[Job], packing: int, fits: Callable[[Sequence[Job]], bool], kind: Callable[[Job], Hashable]
) -> Iterator[tuple[Job, ...]]:
    """Jobs of one kind on one model together, in the order in which these first appear."""
    groups: dict[Hashable, list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.model or job.place, kind(job)), []).append(job)
    for group in groups.values():
        pack: list[Job] = []
        for job in group:
            if pack and (len(pack) == packing or not fits([*pack, job])):
                yield tuple(pack)
                pack = []
            pack.append(job)
        yield tuple(pack)


def _stem(job: Job) -> str:
    """What batches that begin with such a job are called."""
    return job.models[0].name.replace("/", "_") if isinstance(job.work, Cell) else job.work.name


def _failed_need(job: Job, store: Store) -> str | None:
    """The reason of the first need that has failed."""
    folders = map(store.folder, job.needs)
    return next((folder.failure for folder in folders if not folder.is_done and folder.failure is not None), None)


def _is_waiting(job: Job, store: Store) -> bool:
    """Whether some need is neither built nor failed."""
    return not all(store.folder(need).is_settled for need in job.needs)
