"""Describe a plan: its cells and artifacts, what is done, what is missing, and estimates for the rest."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.plain_text import counted, memory_size
from harness.plan.cell import Cell
from harness.plan.estimate import Basis, Resources, duration, of_artifact, of_cell
from harness.plan.plan import Plan, PlannedCell
from harness.store.artifacts import ArtifactCache

_BASES: Mapping[Basis, str] = {
    "finished cells": "finished cells of the same method and model",
    "measured throughput": "operation counts at the throughput of finished cells on the same model",
    "assumed throughput": "a rough guess (operation counts at an assumed speed)",
}
FEW = 500
"""Maximum number of cells with a line each; beyond it, cells are grouped by method, model and dataset."""


def describe(plan: Plan, console: Console) -> None:
    """Print what a run of a plan would do."""
    table = Table(title=f"{plan.suite.name}, scale {plan.suite.scale}", title_justify="left")
    lines = _lines(plan.cells)
    has_more = any(len(same) > 1 or same[0].title[3] for same in lines)
    for column in ("method", "model", "dataset", *(["setting"] if has_more else []), "backend", "state"):
        table.add_column(column)
    table.add_column("~time", justify="right")
    table.add_column("~memory", justify="right")
    if plan.device == "cuda":
        table.add_column("~GPU", justify="right")
    existing = plan.store.cells()
    needs = {
        planned.cell.folder: of_cell(planned.cell, plan.device, plan.history) for planned in plan.cells if planned.cell
    }
    for same in lines:
        states = Counter(_state(plan, planned, existing) for planned in same)
        shown = [state if len(same) == 1 else f"{count} {state}" for state, count in states.items()]
        theirs = [needs[planned.cell.folder] for planned in same if planned.cell]
        time = duration(sum(each.seconds for each in theirs)) if theirs else ""
        sizes = [
            [each.memory_bytes for each in theirs],
            *([[e.gpu_bytes for e in theirs]] if plan.device == "cuda" else []),
        ]
        memory = [memory_size(max(size)) if size else "" for size in sizes]
        extra = same[0].title[3] if len(same) == 1 else f"{len(same)} cells"
        title = (_label(same), *same[0].title[1:3], *([extra] if has_more else []))
        table.add_row(*title, same[0].backend, ", ".join(shown), time, *memory)
    console.print(table)
    if needs:
        _describe_largest(plan, needs, console)
    todo = plan.todo()
    builds_s = _describe_artifacts(plan, todo, console)
    for model in plan.models():
        if model.revision and not model.is_to_download:
            console.print(f"model {model.name}: {model.source} at commit {model.revision}", soft_wrap=True)
    suite = plan.suite
    if suite.eval_batch == "auto":
        rows = {planned.cell.model.name: planned.cell.eval_batch for planned in plan.cells if planned.cell}
        console.print(f"eval_batch: {', '.join(f'{count} for {name}' for name, count in rows.items())}", soft_wrap=True)
    cells_s = sum(needs[cell.folder].seconds for cell in todo)
    console.print(
        f"{counted(len(suite.methods), 'method')} × {counted(len(suite.models), 'model')} × "
        f"{counted(len(suite.datasets), 'dataset')}: "
        f"{counted(len(plan.cells), 'cell')}, {len(plan.runnable)} can run here, {len(plan.runnable) - len(todo)} done, "
        f"{len(todo)} to do, launch {suite.launch}"
    )
    if todo:
        parts = f"artifacts {duration(builds_s)}, cells {duration(cells_s)}"
        console.print(f"about {duration(builds_s + cells_s)} of work on {plan.device}: {parts}")
        bases = Counter(needs[cell.folder].basis for cell in todo)
        of_each = ", ".join(
            f"{counted(count, 'cell')} from {_BASES[basis]}" for basis in _BASES if (count := bases[basis])
        )
        console.print(f"times of {of_each}" if len(bases) > 1 else f"~time: {_BASES[next(iter(bases))]}")
    for note in plan.notes():
        console.print(f"[dim]note[/dim] {escape(note)}")


def describe_together(plans: Sequence[Plan], console: Console) -> None:
    """Print what a run of several plans in one store would do; shared cells and artifacts count once."""
    todo = {cell.folder: (plan, cell) for plan in plans for cell in plan.todo()}
    runnable = {cell.folder for plan in plans for cell in plan.runnable}
    cells_s = sum(of_cell(cell, plan.device, plan.history).seconds for plan, cell in todo.values())
    builds = {
        spec.key: (plan, spec)
        for plan in plans
        for spec, _ in plan.artifacts(plan.todo())
        if not ArtifactCache(plan.store).is_built(spec)
    }
    builds_s = sum(of_artifact(spec, plan.device, plan.history).seconds for plan, spec in builds.values())
    console.print(
        f"{len(plans)} suites together: {len(runnable)} different cells can run here, {len(todo)} to do, "
        f"{len(builds)} artifacts to build, about {duration(builds_s + cells_s)} of work"
    )


def _describe_largest(plan: Plan, needs: Mapping[str, Resources], console: Console) -> None:
    """Print what the memory of the largest cell consists of."""
    cells = {planned.cell.folder: planned.cell for planned in plan.cells if planned.cell}
    folder = max(needs, key=lambda each: max(needs[each].gpu_bytes, needs[each].memory_bytes))
    phases = (
        f"{phase}: " + ", ".join(f"{what} {memory_size(size)}" for what, size in parts.items() if size)
        for phase, parts in needs[folder].parts.items()
        if sum(parts.values())
    )
    cell = cells[folder]
    console.print(f"memory of the largest, {cell.label} on {cell.model.name}: {'; '.join(phases)}", soft_wrap=True)


def _describe_artifacts(plan: Plan, todo: Sequence[Cell], console: Console) -> float:
    """Print a line for each kind of artifact; return the estimated seconds of those that are not built."""
    cache, used = ArtifactCache(plan.store), plan.artifacts(plan.runnable)
    needed = {spec.key for spec, _ in (used if len(todo) == len(plan.runnable) else plan.artifacts(todo))}
    built, to_build = Counter[str](), defaultdict[str, list[float]](list)
    for spec, _ in used:
        if cache.is_built(spec):
            built[spec.name] += 1
        elif spec.key in needed:
            to_build[spec.name].append(of_artifact(spec, plan.device, plan.history).seconds)
    for name in sorted({*built, *to_build}):
        if built[name]:
            console.print(f"artifact {name}: {built[name]} built")
        if to_build[name]:
            console.print(f"artifact {name}: {len(to_build[name])} to build, ~{duration(sum(to_build[name]))}")
    return sum(itertools.chain.from_iterable(to_build.values()))


def _lines(cells: Sequence[PlannedCell]) -> list[list[PlannedCell]]:
    """Cells that share a line of the table."""
    if len(cells) <= FEW:
        return [[planned] for planned in cells]
    by_label = [
        list(same) for _, same in itertools.groupby(cells, lambda planned: (planned.title[:3], planned.backend))
    ]
    if len(by_label) <= FEW:
        return by_label
    return [list(same) for _, same in itertools.groupby(cells, _unswept)]


def _unswept(planned: PlannedCell) -> tuple[str, ...]:
    """Method, model, dataset and backend, whatever the method's settings."""
    method = planned.cell.method.name if planned.cell else planned.title[0]
    return (method, *planned.title[1:3], planned.backend)


def _label(same: Sequence[PlannedCell]) -> str:
    labels = {planned.title[0] for planned in same}
    return same[0].title[0] if len(labels) == 1 else f"{_unswept(same[0])[0]} ({len(labels)} settings)"


def _state(plan: Plan, planned: PlannedCell, existing: set[str]) -> str:
    if planned.cell is None:
        return "[yellow]cannot run[/yellow]"  # the lines below the table say why
    if planned.cell.folder not in existing:
        return "to do"
    kept = plan.store.cell(planned.cell.folder)
    if kept.is_done:
        return "[green]done[/green]"
    return f"[red]failed[/red]: {escape(kept.failure)}" if kept.failure is not None else "to do"
