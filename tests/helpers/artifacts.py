"""Artifacts built without a plan, for tests of what uses them."""

from collections.abc import Iterable

from rich.console import Console

from harness.api import ArtifactSpec
from harness.plan.job import job_of
from harness.run.context import RunContext
from harness.run.progress import Display
from harness.run.runner import Runner
from harness.store.artifacts import ArtifactCache
from harness.store.store import Store


def quiet_context(store: Store) -> RunContext:
    """A context on the CPU that shows no progress."""
    return RunContext(ArtifactCache(store), "cpu", Display(Console(quiet=True)))


def build(store: Store, context: RunContext, roots: Iterable[ArtifactSpec], seed: int = 0) -> None:
    """Build what is missing of these artifacts and of everything they need."""
    runner = Runner(store, context)
    for spec in {need.key: need for root in roots for need in root.closure()}.values():
        if not ArtifactCache(store).is_built(spec):
            assert runner.run(job_of(spec, seed, context.device)).reason is None
