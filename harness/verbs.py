"""What each verb of the command line does, told in the order in which it happens."""

import argparse
import dataclasses
import json
import time
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from harness.errors import UserError
from harness.files import understood
from harness.plan.plan import Plan
from harness.store.store import DONE, FAILED, Store, is_called
from harness.suite import load_suite
from harness.suite.entries import Suite
from slurm.profile import Profile, SlurmProfile, load_profile


def run(options: argparse.Namespace) -> int:
    """Run what is missing of a suite; then its tables and MLflow runs."""
    return _run(options, retry=False)


def retry(options: argparse.Namespace) -> int:
    """Run the failed cells of a suite again; `run` would do the same and everything else that is missing."""
    return _run(options, retry=True)


def plan(options: argparse.Namespace) -> int:
    """Print what a run would do."""
    from harness.plan.describe import outlook
    from harness.run.start import lacks

    console = _console()
    made, profile = _planned(options)
    outlook(made, console)
    if isinstance(profile, SlurmProfile):
        from slurm.commands import shape

        console.print(shape(made, profile), soft_wrap=True)
    for reason in lacks(made, profile):
        console.print(f"[yellow]cannot run:[/yellow] {escape(reason)}", soft_wrap=True)
    return 0


def status(options: argparse.Namespace) -> int:
    """Print how a suite's cells are doing; 1 if one failed."""
    from slurm.commands import show

    made, _ = _planned(options)
    return show(made, _console(), as_json=options.json, watch_s=options.watch, everything=options.all)


def cancel(options: argparse.Namespace) -> int:
    """Cancel the jobs of a suite; what is finished stays."""
    from slurm.commands import cancel as end

    suite = _suite(options)
    return end(Store(options.store), suite.name, suite.scale, _console())


def logs(options: argparse.Namespace) -> int:
    """Print the end of what a cell has logged."""
    from slurm.commands import logs as show

    return show(Store(options.store), options.cell, options.lines)


def sync(options: argparse.Namespace) -> int:
    """Import finished cells into MLflow, once or whenever there are new ones."""
    from harness.run.start import described
    from harness.store.tracking import sync as import_runs

    console, seen = _console(), None
    suite = _name(options.suite) if options.suite else None
    while True:
        there = sorted((options.store / "cells").glob(f"[!.]*/{DONE}"))
        now = {file: file.stat().st_mtime_ns for file in there}
        if now != seen:
            console.print(f"MLflow: {described(import_runs(options.store, suite, options.tracking_uri))}")
        if options.watch is None:
            return 0
        seen = now
        time.sleep(options.watch)


def report(options: argparse.Namespace) -> int:
    """Write the tables of a suite."""
    from reports import write_report

    console = _console()
    for path in write_report(options.store, _name(options.suite), options.scale, console):
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    return 0


def explain(options: argparse.Namespace) -> int:
    """Print where the numbers of a cell come from."""
    from rich.pretty import pprint

    folder = _cell(Store(options.store), options.cell)
    for name in ("cell", "metrics", "cost", "provenance"):
        file = folder / f"{name}.json"
        if file.is_file():
            print(f"── {name}")
            with understood(folder):
                pprint(json.loads(file.read_text()), expand_all=True)
    if (folder / FAILED).is_file():
        print(f"── failed: {(folder / FAILED).read_text().strip()}")
    return 0


def list_(options: argparse.Namespace) -> int:
    """Print the names that a suite may use."""
    from harness.listing import listing

    console = _console()
    for name, meaning in listing(options.what).items():
        console.print(f"{name:24s} {meaning}", markup=False, highlight=False, soft_wrap=True)
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
        console.print(f"{mark} {finding.what}: {escape(finding.detail)}", highlight=False, soft_wrap=True)
    return 0


def easyedit(options: argparse.Namespace) -> int:
    """Fetch EasyEdit's code, or show what there is of it."""
    from methods.easyedit import commands

    console = _console()
    if options.action == "fetch":
        found = commands.fetch(options.source) if options.source else commands.fetch()
        console.print(commands.described(found), highlight=False, soft_wrap=True)
        return 0
    for line in commands.show():
        console.print(line, highlight=False, soft_wrap=True)
    return 0


def data(options: argparse.Namespace) -> int:
    """List, show or fetch records."""
    from harness.data import commands

    return commands.run(options.action, options.name, options.data, options.id, Path(options.to), _console())


def _run(options: argparse.Namespace, retry: bool) -> int:
    from harness.run.start import run as run_plan

    made, profile = _planned(options)
    return run_plan(
        made,
        profile,
        _console(),
        failed_only=retry,
        force=options.force,
        detach=options.detach,
        report=not options.no_report,
    )


def _console() -> Console:
    """The terminal as it is; a log file gets room for whole lines."""
    return Console(width=None if Console().is_terminal else 120)


def _suite(options: argparse.Namespace) -> Suite:
    suite = load_suite(
        options.suite,
        scale=options.scale,
        only=options.only,
        data=options.data,
        edits=options.edits,
        backend=options.backend,
    )
    return dataclasses.replace(suite, launch=options.launch) if options.launch else suite


def _planned(options: argparse.Namespace) -> tuple[Plan, Profile]:
    """The plan of a suite and the profile that it is launched with."""
    suite = _suite(options)
    profile = load_profile(suite.launch)
    elsewhere = profile.device(suite.device) if isinstance(profile, SlurmProfile) else None
    return Plan(suite, Store(options.store), elsewhere), profile


def _name(suite: str) -> str:
    """The name of a suite, of which its file may be given."""
    return load_suite(suite).name if suite.endswith((".yaml", ".yml")) else suite


def _cell(store: Store, name: str) -> Path:
    """The folder of the one cell that a name fits."""
    found = sorted(folder for folder in store.cells() if is_called(folder, name))
    if len(found) != 1:
        there = f": {', '.join(found[:5])}{', …' * (len(found) > 5)}" if found else ""
        fix = "name one of them" if found else f"ls {store.root}/cells"
        raise UserError(f"'{name}' fits {len(found)} cells of {store.root}{there}", fix=fix)
    return store.cell(found[0]).path
