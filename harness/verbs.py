"""What each verb of the command line does, told in the order in which it happens."""

import argparse
import dataclasses
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from harness import provenance
from harness.errors import UserError
from harness.plan import Plan, memory_bytes, seconds
from harness.store import FAILED, Store
from harness.suite import load_suite
from harness.suite.entries import Suite
from methods import registry

if TYPE_CHECKING:
    from harness.tracking import SyncResult


def run(options: argparse.Namespace) -> int:
    """Run what is missing of a suite; then its tables and MLflow runs."""
    return _run(options, retry=False)


def retry(options: argparse.Namespace) -> int:
    """Run the failed cells of a suite again; `run` would do the same and everything else that is missing."""
    return _run(options, retry=True)


def plan(options: argparse.Namespace) -> int:
    """Print what a run would do."""
    from harness.artifacts import ArtifactCache

    console = _console()
    made = Plan(_suite(options), Store(options.store))
    cache = ArtifactCache(made.store)
    table = Table(title=f"{made.suite.name}, scale {made.suite.scale}", title_justify="left")
    for column in ("method", "model", "data set", "", "state"):
        table.add_column(column)
    table.add_column("~time", justify="right")
    table.add_column("~memory", justify="right")
    for planned in made.cells:
        time = memory = ""
        if planned.cell:
            state = _state(made.store, planned.cell.folder)
            time = _duration(seconds(planned.cell, made.device))
            memory = f"{memory_bytes(planned.cell) / 2**30:.0f} GiB"
        else:
            state = f"[yellow]{planned.missing[0].partition(':')[0]}[/yellow]"
        table.add_row(*planned.title, state, time, memory)
    console.print(table)
    todo = made.todo()
    artifacts = Counter((spec.name, cache.is_built(spec)) for spec, _ in made.artifacts(made.runnable))
    for (name, is_built), count in sorted(artifacts.items()):
        console.print(f"artifact {name}: {count} {'built' if is_built else 'to build'}")
    total = sum(seconds(cell, made.device) for cell in todo)
    suite = made.suite
    console.print(
        f"{len(suite.methods)} methods × {len(suite.models)} models × {len(suite.datasets)} data sets: "
        f"{len(made.cells)} cells, {len(made.runnable)} can run here, {len(made.runnable) - len(todo)} done, "
        f"{len(todo)} to do (~{_duration(total)} on {made.device}), launch {suite.launch}"
    )
    for reason in made.missing():
        console.print(f"[yellow]cannot run:[/yellow] {reason}")
    for note in made.notes():
        console.print(f"[dim]note[/dim] {note}")
    return 0


def status(options: argparse.Namespace) -> int:
    """Print the state of a suite's cells; 1 if one failed."""
    console = _console()
    made = Plan(_suite(options), Store(options.store))
    states: Counter[str] = Counter()
    for planned in made.cells:
        state = "missing"
        if planned.cell:
            folder = made.store.cell(planned.cell.folder)
            state = "done" if folder.is_done else "failed" if folder.failure else "to do"
            if folder.failure:
                console.print(
                    f"[red]failed[/red] {planned.cell.folder}: {folder.failure}\n  log: {folder.path}/log.txt"
                )
        states[state] += 1
    console.print(", ".join(f"{count} {state}" for state, count in sorted(states.items())))
    return 1 if states["failed"] else 0


def sync(options: argparse.Namespace) -> int:
    """Import finished cells into MLflow."""
    from harness.tracking import sync as import_runs

    _console().print(f"MLflow: {_counts(import_runs(options.store, options.suite, options.tracking_uri))}")
    return 0


def report(options: argparse.Namespace) -> int:
    """Write the tables of a suite."""
    from reports import write_report

    name = load_suite(options.suite).name if options.suite.endswith((".yaml", ".yml")) else options.suite
    console = _console()
    for path in write_report(options.store, name, options.scale, console):
        console.print(f"wrote {path}")
    return 0


def explain(options: argparse.Namespace) -> int:
    """Print where the numbers of a cell come from."""
    from rich.pretty import pprint

    cells = options.store / "cells"
    found = sorted(
        folder
        for folder in (cells.iterdir() if cells.is_dir() else [])
        if not folder.name.startswith(".")
        and (folder.name.startswith(options.cell) or _id(folder).startswith(options.cell))
    )
    if len(found) != 1:
        names = ", ".join(folder.name for folder in found[:5]) or "none"
        raise UserError(f"'{options.cell}' fits {len(found)} cells of {options.store}: {names}", fix="name one of them")
    for name in ("cell", "metrics", "cost", "provenance"):
        file = found[0] / f"{name}.json"
        if file.is_file():
            print(f"── {name}")
            pprint(json.loads(file.read_text()), expand_all=True)
    if (found[0] / FAILED).is_file():
        print(f"── failed: {(found[0] / FAILED).read_text().strip()}")
    return 0


def list_(options: argparse.Namespace) -> int:
    """Print the names that a suite may use."""
    from harness.listing import listing

    console = _console()
    for name, meaning in listing(options.what).items():
        console.print(f"{name:24s} {meaning}", highlight=False)
    return 0


def schema(options: argparse.Namespace) -> int:
    """Print the JSON Schema of suite files."""
    from harness.suite import suite_json_schema

    print(json.dumps(suite_json_schema(), indent=2))
    return 0


def doctor(options: argparse.Namespace) -> int:
    """Print what is installed and what is missing."""
    from harness.doctor import findings

    console = _console()
    for finding in findings():
        mark = "[green]✓[/green]" if finding.is_present else "[yellow]–[/yellow]"
        console.print(f"{mark} {finding.what}: {finding.detail}", highlight=False)
    return 0


def data(options: argparse.Namespace) -> int:
    """List, show or fetch records."""
    from harness.data import commands

    return commands.run(options.action, options.name, options.data, options.id, Path(options.to), _console())


def _run(options: argparse.Namespace, retry: bool) -> int:
    console = _console()
    store = Store(options.store)
    made = Plan(_suite(options), store)
    _refuse(made)
    for note in made.notes():
        console.print(f"[yellow]note[/yellow] {note}")
    with store.locked():
        if retry:
            made.keep(lambda cell: store.cell(cell.folder).failure is not None)
        _write_manifest(made)
        if options.force:
            for cell in made.runnable:
                store.discard(cell.folder)
        from harness.local import launch

        summary = launch(made, console)
        if not options.no_report:
            _report(made, options.store, console)
    console.print(
        f"{len(summary.finished)} cells finished, {len(summary.kept)} were there already, {len(summary.failed)} failed"
    )
    for folder, reason in summary.failed:
        console.print(f"[red]failed[/red] {folder}: {reason}\n  log: {store.cell(folder).path}/log.txt", soft_wrap=True)
    return 1 if summary.failed else 0


def _refuse(made: Plan) -> None:
    """Stop before anything is done when a part of the suite cannot run here."""
    unbuilt = dict.fromkeys(method.name for method in made.suite.methods if not method.built)
    if unbuilt:
        built = [m.label for m in made.suite.methods if m.built] or list(registry.available())
        raise UserError(
            f"{made.suite.file}: not built yet: {', '.join(unbuilt)}; built are: {', '.join(registry.available())}",
            fix=f"--only method={','.join(built)}",
        )
    if made.suite.launch != "local":
        raise UserError(
            f"{made.suite.file}: launch '{made.suite.launch}' needs SLURM, which this machine does not have",
            fix="--launch local to run here, or --scale mini for small models",
        )
    missing = made.missing()
    if missing:
        raise UserError(f"{made.suite.file}: {missing[0]}", fix=f"{len(missing)} reason(s) in: python -m harness plan")


def _report(made: Plan, store: Path, console: Console) -> None:
    from harness.tracking import sync as import_runs
    from reports import write_report

    paths = write_report(store, made.suite.name, made.suite.scale, console)
    result = import_runs(store, f"{made.suite.name}.{made.suite.scale}", None)
    console.print(f"MLflow: {_counts(result)}; look at them with:")
    console.print(f"  {result.ui_command}", highlight=False, soft_wrap=True)
    for path in paths:
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)


def _console() -> Console:
    """The terminal as it is; a log file gets room for whole lines."""
    return Console(width=None if Console().is_terminal else 120)


def _counts(result: "SyncResult") -> str:
    return f"{result.created} runs created, {result.replaced} replaced, {result.skipped} already there"


def _write_manifest(made: Plan) -> None:
    suite = made.suite
    made.store.write_manifest(
        suite.name,
        suite.scale,
        {
            "suite": suite.name,
            "scale": suite.scale,
            "created": datetime.now(UTC).isoformat(),
            "command": provenance.command(),
            "tables": list(suite.tables),
            "cells": [planned.cell.folder for planned in made.cells if planned.cell],
        },
    )


def _suite(options: argparse.Namespace) -> Suite:
    suite = load_suite(options.suite, scale=options.scale, only=options.only, data=options.data, edits=options.edits)
    return dataclasses.replace(suite, launch=options.launch) if options.launch else suite


def _state(store: Store, folder: str) -> str:
    kept = store.cell(folder)
    if kept.is_done:
        return "[green]done[/green]"
    return f"[red]failed[/red]: {kept.failure}" if kept.failure else "to do"


def _duration(length_s: float) -> str:
    minutes, rest = divmod(int(length_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d}" if hours else f"{minutes} min" if minutes else f"{rest} s"


def _id(folder: Path) -> str:
    return folder.name.rpartition("-")[2]
