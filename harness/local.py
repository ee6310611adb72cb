"""The local launcher: artifacts, then cells, one after the other in this process, each kept once it is finished."""

import os
from dataclasses import dataclass

from rich.console import Console

from harness.artifacts import ArtifactCache
from harness.cell import Cell
from harness.plan import Plan, roots
from harness.progress import ProgressBars
from methods.base import ArtifactSpec


@dataclass(frozen=True, slots=True)
class Summary:
    """What a launch did: folders of cells by how they ended."""

    finished: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    kept: tuple[str, ...]


def launch(plan: Plan, console: Console) -> Summary:
    """Run what a plan has to do. A failure stops nothing but what depends on it."""
    todo = plan.todo()
    kept = tuple(cell.folder for cell in plan.runnable if cell not in todo)
    if not todo:
        return Summary((), (), kept)
    _prepare_torch(plan.suite.threads)
    from harness.context import RunContext
    from harness.runner import Runner

    artifacts = ArtifactCache(plan.store)
    finished: list[str] = []
    failed: list[tuple[str, str]] = []
    broken: dict[str, str] = {}
    with ProgressBars(console) as bars:
        runner = Runner(plan.store, RunContext(artifacts, plan.device, bars))
        needed = [(spec, seed) for spec, seed in plan.artifacts(todo) if not artifacts.is_built(spec)]
        for number, (spec, seed) in enumerate(needed, 1):
            reason = next((broken[need.key] for need in spec.needs.values() if need.key in broken), None)
            seconds = 0.0
            if reason is None:
                outcome = runner.build(spec, seed)
                reason, seconds = outcome.reason, outcome.seconds
            if reason is not None:
                broken[spec.key] = reason
            console.print(_line(number, len(needed), f"artifact {spec.name} {_name(spec)}", seconds, reason))
        for number, cell in enumerate(todo, 1):
            reason, seconds = _blocked(cell, broken), 0.0
            if reason is None:
                outcome = runner.run(cell)
                reason, seconds = outcome.reason, outcome.seconds
            else:
                runner.fail(cell, reason)
            (failed.append((cell.folder, reason)) if reason else finished.append(cell.folder))
            title = f"{cell.label} on {cell.model.name}, {cell.data.name}"
            console.print(_line(number, len(todo), title, seconds, reason))
    return Summary(tuple(finished), tuple(failed), kept)


def _blocked(cell: Cell, broken: dict[str, str]) -> str | None:
    return next((broken[spec.key] for spec in roots(cell) if spec.key in broken), None)


def _prepare_torch(threads: int | None) -> None:
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


def _line(number: int, total: int, title: str, seconds: float, reason: str | None) -> str:
    if reason is None:
        return f"[green]✓[/green] {number}/{total} {title} [dim]{seconds:.1f} s[/dim]"
    return f"[red]✗[/red] {number}/{total} {title}: {reason}"


def _name(spec: ArtifactSpec) -> str:
    """What tells an artifact from others of its kind, for a line on the screen: the models and records that it is of."""
    return " ".join(str(getattr(value, "name", value)) for value in spec.inputs.values())
