"""A job: the unit of execution. An artifact to build or a cell to run, with what must exist before and what it takes."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from harness.api import ArtifactSpec
from harness.models.catalogue import ModelRef
from harness.plan import estimate
from harness.plan.cell import Cell, models_of
from harness.plan.estimate import Resources
from harness.plan.history import History
from harness.plan.plan import Plan, roots
from harness.store.artifacts import ArtifactCache

Work: TypeAlias = Cell | ArtifactSpec
"""What a job does: run a cell, or build an artifact."""


@dataclass(frozen=True, slots=True)
class Job:
    """Plain data that can be sent to another process. It is settled once its folder in the store holds DONE or FAILED.

    Attributes:
        work: the cell or the artifact.
        seed: all its randomness follows from it.
        place: its folder below the store, `cells/…` or `artifacts/<name>/<key>`; its name everywhere.
        title: for a line on the screen.
        needs: places of the artifacts that must be built before.
        models: those it loads, the one it is about first; none where it loads none.
        resources: estimated memory and time on the plan's device.
    """

    work: Work
    seed: int
    place: str
    title: str
    needs: tuple[str, ...]
    models: tuple[ModelRef, ...]
    resources: Resources

    @property
    def model(self) -> ModelRef | None:
        """The model that it is about; None where it loads none."""
        return next(iter(self.models), None)

    @property
    def is_cell(self) -> bool:
        """Whether it runs a cell; otherwise it builds an artifact."""
        return isinstance(self.work, Cell)


def jobs(plan: Plan) -> list[Job]:
    """Everything a plan has to do: artifacts that are not built, needs first, then the cells that are not done."""
    cells = plan.todo()
    cache = ArtifactCache(plan.store)
    builds = [
        job_of(spec, seed, plan.device, plan.history)
        for spec, seed in plan.artifacts(cells)
        if not cache.is_built(spec)
    ]
    return _apart([*builds, *(job_of(cell, cell.seed, plan.device, plan.history) for cell in cells)])


def job_of(work: Work, seed: int, device: str, history: History | None = None) -> Job:
    """The job that does a piece of work.

    Args:
        work: a cell or an artifact.
        seed: of a cell its own, of an artifact that of the first cell that uses it.
        device: `cpu` or `cuda`, for the estimate.
        history: finished cells, for the same.
    """
    needs: Iterable[ArtifactSpec]
    if isinstance(work, Cell):
        title = f"{work.label} on {work.model.name}, {', '.join(filter(None, [work.data.name, work.extra]))}"
        needs, resources = roots(work), estimate.of_cell(work, device, history)
    else:
        title = f"artifact {work.name} {' '.join(map(_input, work.inputs.values()))}"
        needs, resources = work.needs.values(), estimate.of_artifact(work, device, history)
    return Job(work, seed, place_of(work), title, tuple(map(place_of, needs)), models_of(work), resources)


def _input(value: Any) -> str:
    """How a title names an input of an artifact: records and models by name, text and numbers as they are."""
    return value if isinstance(value, str) else str(getattr(value, "name", None) or getattr(value, "title", value))


def _apart(found: Sequence[Job]) -> list[Job]:
    """Give jobs that share a title one with the beginning of their id, so that no two lines about jobs are the same."""
    titles = Counter(job.title for job in found)
    return [
        replace(job, title=f"{job.title} ({re.split('[-/]', job.place)[-1][:8]})") if titles[job.title] > 1 else job
        for job in found
    ]


def place_of(work: Work) -> str:
    """The folder of a cell or an artifact below the store. It follows from the work and from the code that reads it."""
    return f"cells/{work.folder}" if isinstance(work, Cell) else f"artifacts/{work.name}/{work.key}"
