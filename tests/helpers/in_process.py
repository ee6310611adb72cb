"""Artifacts and cells run in this process, without a launcher."""

from collections.abc import Iterable
from pathlib import Path

import torch
from rich.console import Console

from harness.api import ArtifactSpec
from harness.plan.cell import Cell
from harness.plan.job import Work, job_of, jobs
from harness.plan.plan import Plan
from harness.run.context import RunContext
from harness.run.outcome import Outcome
from harness.run.progress import Display
from harness.run.runner import Runner
from harness.store.artifacts import ArtifactCache
from harness.store.store import Folder, Store
from harness.suite import load_suite


def quiet_context(store: Store) -> RunContext:
    """A context on the CPU that shows no progress."""
    return RunContext(ArtifactCache(store), "cpu", Display(Console(quiet=True)))


def build(store: Store, context: RunContext, roots: Iterable[ArtifactSpec], seed: int = 0) -> None:
    """Build what is missing of these artifacts and of everything they need."""
    runner = Runner(store, context)
    for spec in {need.key: need for root in roots for need in root.closure()}.values():
        if not ArtifactCache(store).is_built(spec):
            assert runner.run(job_of(spec, seed, context.device)).reason is None


class PlanBench:
    """The cells of a suite, all their artifacts built, run one by one by one runner with its own models in memory."""

    def __init__(self, suite: Path, store: Path) -> None:
        torch.set_num_threads(1)
        self.plan = Plan(load_suite(suite), Store(store))
        self.store = self.plan.store
        self.context = quiet_context(self.store)
        self.runner = Runner(self.store, self.context)
        for job in jobs(self.plan):
            if not job.is_cell:
                assert self.runner.run(job).reason is None

    def cell(self, label: str, model: str = "tiny/llama") -> Cell:
        """The planned cell of a method on a model."""
        return next(cell for cell in self.plan.runnable if (cell.label, cell.model.name) == (label, model))

    def run(self, work: Work) -> Outcome:
        """Run a cell or build an artifact."""
        return self.runner.run(job_of(work, getattr(work, "seed", 0), "cpu"))

    def folder(self, cell: Cell) -> Folder:
        """Where a cell's results are."""
        return self.store.cell(cell.folder)
