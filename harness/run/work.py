"""Units of work: what one process or one job does in order, and the one way in which it is done wherever it runs."""

import itertools
import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from harness.run.progress import Bars
from harness.run.task import BuildArtifact, Outcome, RunCell, Task
from harness.store.artifacts import ArtifactCache
from harness.store.store import Store

if TYPE_CHECKING:
    from harness.plan.plan import Plan


@dataclass(frozen=True, slots=True)
class Unit:
    """Tasks of one process, in their order. Plain data, which another process can be handed.

    Attributes:
        name: unlike all others of a launch, and fit for a file name.
        store: root of the results folder, as whoever runs the unit sees it.
        device, threads: as in the plan.
        patience_s: how long needs that are not there are looked for in all: a file system that several nodes share may
            show late what another node has written.
    """

    name: str
    store: Path
    tasks: tuple[Task, ...]
    device: str
    threads: int | None
    patience_s: float = 0.0

    def unsettled(self) -> list[Task]:
        """Tasks that are neither done nor failed."""
        store = Store(self.store)
        return [task for task in self.tasks if not task.folder(store).is_settled]

    def of(self, tasks: Sequence[Task], name: str) -> "Unit":
        """A unit like this one with other tasks."""
        return replace(self, name=name, tasks=tuple(tasks))


class Watcher(Bars, Protocol):
    """Is told what a unit does while it does it; its bars show progress inside a task."""

    def began(self, task: Task) -> None:
        """A task is being run from now on."""
        ...

    def ended(self, task: Task, outcome: Outcome) -> None:
        """A task is settled. One of which a need has failed is so without having begun."""
        ...


def to_do(plan: "Plan") -> list[Task]:
    """Artifacts that are not built, needs first, and the cells that a plan has to do."""
    cells = plan.todo()
    cache = ArtifactCache(plan.store)
    builds = [BuildArtifact(spec, seed) for spec, seed in plan.artifacts(cells) if not cache.is_built(spec)]
    return [*builds, *map(RunCell, cells)]


def reopen(store: Store, tasks: Iterable[Task]) -> None:
    """Forget earlier failures: from now on a task that has failed has failed in this launch, and is settled."""
    for task in tasks:
        task.folder(store).reopen()


def waves(
    plan: "Plan",
    tasks: Sequence[Task],
    packing: int = 1,
    fits: Callable[[Sequence[Task]], bool] = lambda tasks: True,
) -> list[list[Unit]]:
    """Tasks of a plan as units: those of a wave need only what earlier waves build; cells are the last wave.

    Tasks on the same model lie in one unit, so that it is loaded once for them.

    Args:
        plan: what they are of.
        tasks: needs first, as `to_do` lists them.
        packing: tasks of a unit, at most.
        fits: whether tasks may be one unit together; one alone always may.
    """
    level: dict[str, int] = {}
    builds = [task for task in tasks if isinstance(task, BuildArtifact)]
    for build in builds:
        level[build.spec.key] = 1 + max((level.get(need.key, 0) for need in build.needs), default=0)
    layers: list[list[Task]] = [[] for _ in range(max(level.values(), default=0))]
    for build in builds:
        layers[level[build.spec.key] - 1].append(build)
    layers.append([task for task in tasks if isinstance(task, RunCell)])
    number = itertools.count(1)
    return [
        [
            Unit(f"{next(number):05d}-{_stem(pack[0])}", plan.store.root, pack, plan.device, plan.suite.threads)
            for pack in _packs(layer, packing, fits)
        ]
        for layer in layers
        if layer
    ]


def run_unit(unit: Unit, watcher: Watcher) -> None:
    """Settle the tasks of a unit, one after the other.

    What is settled already is left as it is, so that a unit that was killed is simply run again. A task of which a need
    has failed fails for the same reason. A task of which a need is neither built nor failed is left untouched.

    Raises:
        UserError: when the store cannot be written.
    """
    if not unit.unsettled():
        return
    prepare_torch(unit.threads)
    from harness.run.context import RunContext
    from harness.run.runner import Runner

    store = Store(unit.store)
    runner = Runner(store, RunContext(ArtifactCache(store), unit.device, watcher))
    patience_s = unit.patience_s
    for task in unit.tasks:
        if task.folder(store).is_settled:
            continue
        while (reason := _failed_need(task, store)) is None and _waits(task, store) and patience_s > 0:
            time.sleep(1)
            patience_s -= 1
        if reason is not None:
            task.fail(store, reason)
            watcher.ended(task, Outcome(0.0, reason))
        elif not _waits(task, store):
            watcher.began(task)
            watcher.ended(task, task.run(runner))


def prepare_torch(threads: int | None) -> None:
    """The same bits from the same cell: a fixed number of threads and deterministic kernels.

    Waiting threads soon sleep instead of spinning: beside any other busy process, spinning made training eight times slower.
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


def _packs(tasks: Sequence[Task], packing: int, fits: Callable[[Sequence[Task]], bool]) -> Iterator[tuple[Task, ...]]:
    """Tasks on one model together, in the order in which the models come first."""
    groups: dict[Hashable, list[Task]] = {}
    for task in tasks:
        groups.setdefault(next(iter(task.models), task.place), []).append(task)
    for group in groups.values():
        pack: list[Task] = []
        for task in group:
            if pack and (len(pack) == packing or not fits([*pack, task])):
                yield tuple(pack)
                pack = []
            pack.append(task)
        yield tuple(pack)


def _stem(task: Task) -> str:
    """What the units of one kind are called."""
    return task.spec.name if isinstance(task, BuildArtifact) else task.models[0].name.replace("/", "_")


def _failed_need(task: Task, store: Store) -> str | None:
    """The reason of the first need that has failed."""
    folders = (store.artifact(need.name, need.key) for need in task.needs)
    return next((folder.failure for folder in folders if not folder.is_done and folder.failure is not None), None)


def _waits(task: Task, store: Store) -> bool:
    """Whether some need is neither built nor failed."""
    return not all(store.artifact(need.name, need.key).is_settled for need in task.needs)
