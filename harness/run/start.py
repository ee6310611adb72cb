"""A run from its plan to its tables: what stops it before it begins, what it leaves behind, and where it is launched."""

import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from harness.errors import UserError
from harness.plan.cell import Cell
from harness.plan.plan import Plan
from harness.store import provenance
from slurm.profile import LocalProfile, Profile, SlurmProfile

if TYPE_CHECKING:
    from harness.run.local import Summary
    from harness.store.tracking import SyncResult


def run(
    plan: Plan,
    profile: Profile,
    console: Console,
    *,
    failed_only: bool = False,
    force: bool = False,
    detach: bool = False,
    report: bool = True,
) -> int:
    """Run what is missing of a plan; then its tables and MLflow runs.

    Args:
        plan: what to run.
        profile: where.
        console: gets a line for each cell that ends and a summary.
        failed_only: leave out what has not failed.
        force: forget what is finished.
        detach: on a cluster, return once everything is submitted.
        report: write the tables and MLflow runs.

    Returns:
        1 if a cell failed, else 0.

    Raises:
        UserError: where something cannot run here; nothing is done then.
    """
    _refuse(plan, profile)
    for note in plan.notes():
        console.print(f"[yellow]note[/yellow] {escape(note)}")
    store = plan.store
    with store.locked():
        if failed_only:
            plan.keep(lambda cell: store.cell(cell.folder).has_failed)
        if force or isinstance(profile, LocalProfile):
            _refuse_what_jobs_have(plan, plan.runnable if force else plan.todo())
        _write_manifest(plan)
        if force:
            _forget(plan)
        summary = _launch(plan, profile, console, detach)
        if summary is None:
            return 0
        try:
            if report and (summary.finished or summary.kept):
                _report(plan, console)
        finally:  # whatever stands in the way of a table or of MLflow
            _tell(summary, plan, console)
    return 1 if summary.failed else 0


def lacks(plan: Plan, profile: Profile) -> list[str]:
    """Why a plan cannot run from this machine, each reason once."""
    has_slurm = not isinstance(profile, SlurmProfile) or not _slurm_lacks()
    return [*plan.missing(), *([] if has_slurm else [f"launch '{plan.suite.launch}': no SLURM here"])]


def described(result: "SyncResult") -> str:
    """What became of cells in MLflow."""
    return f"{result.created} runs created, {result.replaced} replaced, {result.skipped} already there"


def _launch(plan: Plan, profile: Profile, console: Console, detach: bool) -> "Summary | None":
    """Run what there is to do where the profile says; None if it goes on without this process."""
    if isinstance(profile, LocalProfile):
        from harness.run.local import launch

        return launch(plan, console, profile.processes, profile.packing)
    from slurm.driver import drive

    return drive(plan, profile, console, detach=detach)


def _refuse(plan: Plan, profile: Profile) -> None:
    """Stop before anything is done when a part of the suite cannot run here."""
    suite = plan.suite
    if isinstance(profile, SlurmProfile) and (no_slurm := _slurm_lacks()):
        raise UserError(
            f"{suite.file}: launch '{suite.launch}' needs SLURM, which {no_slurm}",
            fix="--launch local to run here, or --scale mini for small models",
        )
    missing = plan.missing()
    if missing:
        raise UserError(f"{suite.file}: {missing[0]}", fix=f"{len(missing)} reason(s) in: python -m harness plan")


def _slurm_lacks() -> str:
    """Why no job can be submitted from here; empty if one can, also while a controller is away for a moment."""
    if shutil.which("sbatch") is None:
        return "this machine does not have"
    told = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, check=False)
    return "" if "Slurmctld" in told.stdout else "is not set up on this machine"


def _refuse_what_jobs_have(plan: Plan, cells: Sequence[Cell]) -> None:
    """Stop where a job of a cluster may still write what is to be run here or to be forgotten."""
    if not (plan.store.root / "launches").is_dir():
        return
    from slurm.state import held

    names = held(plan.store)
    with_jobs = [name for cell in cells if (name := names.get(f"cells/{cell.folder}"))]
    if with_jobs:
        raise UserError(
            f"{plan.store.root}: {len(with_jobs)} of these cells are with jobs of launch {with_jobs[0]}",
            fix=f"wait for them, or: python -m harness cancel {plan.suite.file}",
        )


def _forget(plan: Plan) -> None:
    """Make all cells ones to do, whatever came of them and of the jobs that had them."""
    from slurm.launch import launches

    for cell in plan.runnable:
        plan.store.discard(cell.folder)
    places = [f"cells/{cell.folder}" for cell in plan.runnable]
    for launch in launches(plan.store):
        launch.again(places)


def _write_manifest(plan: Plan) -> None:
    suite = plan.suite
    plan.store.write_manifest(
        suite.name,
        suite.scale,
        {
            "suite": suite.name,
            "scale": suite.scale,
            "created": datetime.now(UTC).isoformat(),
            "command": provenance.command(),
            "tables": list(suite.tables),
            "cells": [planned.cell.folder for planned in plan.cells if planned.cell],
        },
    )


def _tell(summary: "Summary", plan: Plan, console: Console) -> None:
    """What came of the cells, and where to read of those that failed."""
    console.print(
        f"{len(summary.finished)} cells finished, {len(summary.kept)} were there already, {len(summary.failed)} failed"
    )
    for folder, reason in summary.failed:
        log = plan.store.cell(folder).path / "log.txt"
        console.print(f"[red]failed[/red] {escape(f'{folder}: {reason}')}\n  log: {escape(str(log))}", soft_wrap=True)


def _report(plan: Plan, console: Console) -> None:
    from harness.store.tracking import sync
    from reports import write_report

    suite, store = plan.suite, plan.store.root
    for path in write_report(store, suite.name, suite.scale, console):
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    result = sync(store, f"{suite.name}.{suite.scale}", None)
    console.print(f"MLflow: {described(result)}; look at them with:")
    console.print(f"  {result.ui_command}", markup=False, highlight=False, soft_wrap=True)
