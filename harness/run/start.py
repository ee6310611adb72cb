"""A run from its plan to its summary: checks before it starts, and the reports after it."""

import os
import shlex
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.markup import escape

from harness import registry
from harness.api import Launcher, Summary
from harness.commands import same_command, this_command
from harness.errors import UserError
from harness.plain_text import counted
from harness.plan.cell import Cell
from harness.plan.job import place_of
from harness.plan.plan import Plan
from harness.run.progress import Display
from harness.store.manifest import Manifest, Unresolved, manifests, numbered
from harness.suite.load import whole
from harness.suite.source import refuse_rival

FEW = 5
"""Maximum number of failed cells that the summary names; it counts the rest."""

Report: TypeAlias = Callable[[Plan, Console], None]
"""Called after a run: writes reports from finished cells, and prints where they are."""


def run(
    plan: Plan,
    launcher: Launcher,
    console: Console,
    *,
    failed_only: bool = False,
    is_strict: bool = False,
    force: bool = False,
    detach: bool = False,
    report: Report | None = None,
) -> int:
    """Run the missing cells of a plan, then report on them.

    Args:
        plan: what to run.
        launcher: where.
        console: gets a line for each job that ends and a summary.
        failed_only: leave out cells that have not failed.
        is_strict: stop before anything is done if one of the cells cannot run here.
        force: run finished cells again.
        detach: return once everything is submitted, if the launcher can.
        report: called if there is a finished cell.

    Returns:
        1 if a cell failed or cannot run here, else 0.

    Raises:
        UserError: if nothing can run here; nothing is done then.
    """
    refuse(plan, launcher, is_strict)
    suite, store = plan.suite, plan.store
    display = Display(console, f"{suite.name}.{suite.scale}")
    for note in plan.notes():
        display.note(note)
    if (complete := plan.with_models_here()) is not plan:
        plan = complete
        refuse(plan, launcher, is_strict)
    print_lacks(plan, console)
    with store.locked():
        if failed_only:
            plan.keep(lambda cell: store.cell(cell.folder).has_failed)
            if not plan.todo():
                plan.keep(lambda cell: True)
                left = len(plan.todo())
                rest = f"; {left} are still to do: {plan.command('run')}" if left else ""
                display.say(f"no cell of {suite.name}.{suite.scale} has failed in {store.root}{rest}")
                return 0
        _refuse_cells_of_others(plan, launcher, force)
        _write_manifest(plan.of(whole(plan.suite)) if plan.suite.options["only"] else plan, asked=plan)
        if force:
            _forget(plan)
        with display:
            summary = launcher.run(plan, display, detach=detach)
        if summary is None:
            return 1 if plan.blocked() else 0
        try:
            if report and (summary.finished or summary.kept):
                report(plan, console)
        finally:  # whatever stands in the way of the report
            _print_summary(summary, plan, console)
    return 1 if summary.failed or plan.blocked() else 0


def lacks(plan: Plan, launcher: Launcher | None = None) -> list[str]:
    """Why cells of a plan, or all of them, cannot run from this machine, each reason once."""
    obstacle = launcher.obstacle() if launcher else ""
    whole_plan = [plan.obstacle(), f"launch '{plan.suite.launch}' {obstacle}" if obstacle else ""]
    return [*(f"{cells}: {reason}" for reason, cells in plan.missing().items()), *filter(None, whole_plan)]


def print_lacks(plan: Plan, console: Console, launcher: Launcher | None = None) -> None:
    """Print a line for each reason why cells of a plan cannot run from this machine."""
    for line in lacks(plan, launcher):
        console.print(f"[yellow]cannot run:[/yellow] {escape(line)}", highlight=False, soft_wrap=True)


def refuse(plan: Plan, launcher: Launcher, is_strict: bool = False) -> None:
    """Stop before anything is done if nothing can run here, or not everything where `is_strict`.

    Raises:
        UserError: with the first reason, and the command that helps.
    """
    suite = plan.suite
    if obstacle := launcher.obstacle():
        raise UserError(
            f"{suite.file}: launch '{suite.launch}' {obstacle}",
            fix=f"run here: {same_command(launch='local')}, or with small models: {same_command(scale='mini')}",
        )
    if obstacle := plan.obstacle():
        raise UserError(f"{suite.file}: {obstacle}", fix=plan.command("plan"))
    missing = [reason.partition(" → ") for reason in plan.missing()]
    if missing and (is_strict or not plan.runnable):
        each = [{reason.partition(" → ")[2] for reason in planned.missing} for planned in plan.blocked()]
        helps = set.intersection(*each) - {""}  # all of them
        reason, _, fix = next((one for one in missing if one[2] in helps), missing[0])
        if len(missing) > 1:
            reason, fix = f"{reason} (and {len(missing) - 1} more of these)", fix if fix in helps else ""
        where = "" if reason.startswith(suite.file) else f"{suite.file}: "
        raise UserError(f"{where}{reason}", fix=fix or plan.command("plan"))


def _refuse_cells_of_others(plan: Plan, launcher: Launcher, force: bool) -> None:
    """Stop if another launcher may still write what is to be run here, or any launcher what is to be forgotten."""
    cells: Sequence[Cell] = plan.runnable if force else plan.todo()
    places = [place_of(cell) for cell in cells]
    for other in registry.launchers.all().values():
        if force or not isinstance(launcher, other):
            jobs = other.state(plan.store).jobs
            live = [jobs[place] for place in places if place in jobs and jobs[place].is_live]
            if live:
                raise UserError(
                    f"{plan.store.root}: {len(live)} of these cells belong to running launch {live[0].launch}",
                    fix=f"wait for them, or: {plan.command('cancel')}",
                )


def _forget(plan: Plan) -> None:
    """Make all cells count as never run, whatever became of them and of the jobs that had them."""
    for cell in plan.runnable:
        plan.store.discard(cell.folder)
    for launcher in registry.launchers.all().values():
        launcher.forget(plan.store, [place_of(cell) for cell in plan.runnable])


def _write_manifest(plan: Plan, asked: Plan) -> None:
    """List all cells of a suite for reports and MLflow.

    Args:
        plan: of the whole suite.
        asked: what is to be run of it.

    Raises:
        UserError: if the store has results of a different suite with this name, or of different records of a dataset.
    """
    suite, wanted = plan.suite, {planned.stem for planned in asked.cells}
    named = dict(zip(numbered(planned.stem for planned in plan.cells), plan.cells, strict=True))
    manifest = Manifest(
        suite=suite.name,
        scale=suite.scale,
        variant=suite.variant,
        created=datetime.now(UTC).isoformat(),
        command=this_command(),
        file=suite.source.file,
        file_from_store=os.path.relpath(Path(suite.file).resolve(), plan.store.root.resolve()),
        sha256=suite.source.sha256,
        edits=suite.options["edits"],
        backend=suite.options["backend"],
        data=str(Path(suite.data).resolve()) if suite.data else "",
        records=plan.records(),
        tables=suite.tables,
        figures=suite.figures,
        published=suite.published,
        cells=tuple(dict.fromkeys(planned.cell.folder for planned in plan.cells if planned.cell)),
        combinations={name: planned.cell.folder for name, planned in named.items() if planned.cell},
        unresolved=tuple(
            Unresolved(planned.stem, planned.missing[0], was_asked=planned.stem in wanted, name=name)
            for name, planned in named.items()
            if planned.cell is None
        ),
    )
    for other in manifests(plan.store.root):
        refuse_rival(other, suite.source, plan.store.root)
        if other.name == manifest.name:
            _refuse_other_records(plan, manifest, other)
            manifest = manifest.after(other, list(named))
    manifest.write(plan.store.root)


def _refuse_other_records(plan: Plan, now: Manifest, earlier: Manifest) -> None:
    for selection, sha256 in now.records.items():
        if earlier.records.get(selection, sha256) != sha256:
            file = plan.store.root / "suites" / f"{now.name}.json"
            raise UserError(
                f"{plan.suite.file}: {now.name} has results on other records in this store ({selection}; "
                f"from {earlier.data or 'the suite'} in: {earlier.command})",
                fix=f"another --store; or to begin its tables anew, without losing a cell: rm {shlex.quote(str(file))}",
            )


def _print_summary(summary: Summary, plan: Plan, console: Console) -> None:
    """What became of the cells, and where to read about those that failed."""
    console.print(
        f"{counted(len(summary.finished), 'cell')} finished, {len(summary.kept)} were there already, {len(summary.failed)} failed"
        + (f", {blocked} cannot run here" if (blocked := len(plan.blocked())) else "")
    )
    for folder, reason in summary.failed[:FEW]:
        log = plan.store.cell(folder).path / "log.txt"
        line = reason.splitlines()[0] if reason else ""
        console.print(f"[red]failed[/red] {escape(f'{folder}: {line}')}\n  log: {escape(str(log))}", soft_wrap=True)
    if len(summary.failed) > FEW:
        console.print(
            f"and {len(summary.failed) - FEW} more: {plan.command('status')}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    print_lacks(plan, console)
    if summary.failed:
        console.print(f"run them again: {plan.command('retry')}", markup=False, highlight=False, soft_wrap=True)
