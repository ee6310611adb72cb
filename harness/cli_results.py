"""Commands on the results of a suite: sync, report, results and export-results."""

import itertools
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack

import typer

from harness.cli_shared import (
    RunOptions,
    StoreOption,
    Watching,
    collection_of,
    each_suite,
    new_console,
    positive_float,
    with_options,
)
from harness.commands import harness_command
from harness.errors import UserError, did_you_mean
from harness.plain_text import counted

if TYPE_CHECKING:
    from rich.console import Console

    from harness.plan.plan import Plan
    from harness.store.manifest import Manifest, Options
    from harness.store.tracking import Summarise, SyncResult
    from harness.suite import Suite

app = typer.Typer()

TABLE_LINES = 38
"""Maximum number of table lines at the end of a run, so that everything fits on a screen of 60 lines."""


def _formats() -> list[str]:
    from reports.results import FORMATS

    return list(FORMATS)


@app.command(cls=Watching)
def sync(
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="Name or file of a suite; default: all suites in the store.")
    ] = None,
    watch: Annotated[
        float | None, typer.Option(parser=positive_float, metavar="[S]", help="Repeat every S seconds (default: 30).")
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(metavar="URI", help="MLflow tracking URI (default: MLFLOW_TRACKING_URI, or STORE/mlflow.db)."),
    ] = None,
    store: StoreOption = Path("results"),
) -> int:
    """Import finished cells into MLflow, once or continuously."""
    from harness.store.store import DONE

    console, seen = new_console(), None
    collection = collection_of(suite) if suite else None
    names: list[str | None] = [_name(suite, store, console)] if suite and not collection else [None]
    if collection:
        names = [
            each for each in (_name(suite, store, console) for suite in collection.suites) if each in _known(store)
        ]
        if not names:
            raise UserError(
                f"{store}: no suite of {suite} has been run in this store",
                fix=harness_command("run", suite, store=store),
            )
    elif suite and names[0] and names[0] not in _known(store):
        _refuse_unknown(suite, names[0], "sync", store)
    while True:
        now = {file: file.stat().st_mtime_ns for file in sorted((store / "cells").glob(f"[!.]*/{DONE}"))}
        if now != seen:
            for chosen in names:
                _import(store, chosen, tracking_uri, console)
        if watch is None:
            return 0
        seen = now
        time.sleep(watch)


@app.command()
@with_options(RunOptions)
def report(
    options: RunOptions,
    *,
    everything: Annotated[bool, typer.Option("--all", help="Print all tables in full.")] = False,
) -> int:
    """Write the tables of a suite from all its finished cells, and print the first."""
    console, lines = new_console(), None if everything else TABLE_LINES

    def report_one(one: RunOptions) -> int:
        name = name_of_run(one, "report", console)
        _write_tables(one.store, name, one.scale, console, lines, **one.variant)
        return 0

    code = each_suite(options, report_one, console)
    write_document(options, console)
    return code


@app.command()
@with_options(RunOptions)
def results(
    options: RunOptions,
    *,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="FORMAT",
            help="csv, json or parquet; default: the ending of the file, or csv.",
            autocompletion=lambda: _formats(),
        ),
    ] = None,
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="File to write; default: standard output.")] = None,
) -> int:
    """Write all numbers of a suite, one row per finished cell and protocol, as CSV, JSON or Parquet."""
    import pandas as pd

    from harness.files import write_bytes
    from reports.results import FORMATS, as_bytes, load_results

    asked = form or (to.suffix.removeprefix(".") if to else FORMATS[0])
    chosen = next((known for known in FORMATS if known == asked), None)
    if chosen is None:
        fix = harness_command(
            "results", options.suite, scale=options.scale, store=options.store, format=FORMATS[0], to=to
        )
        guess = did_you_mean(asked, set(FORMATS)) or f"; known: {', '.join(FORMATS)}"
        raise UserError(f"unknown format '{asked}'{guess}", fix=fix)
    console, found = new_console(stderr=True), list[pd.DataFrame]()

    def load_one(one: RunOptions) -> int:
        found.append(load_results(one.store, name_of_run(one, "results", console), one.scale, **one.variant))
        return 0

    code = each_suite(options, load_one, console)
    content = as_bytes(pd.concat(found, ignore_index=True), chosen)
    if to:
        write_bytes(to, content)
    else:
        sys.stdout.buffer.write(content)
    return code


@app.command("export-results")
@with_options(RunOptions)
def export_results(
    options: RunOptions,
    *,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Output folder; it may contain other exports.")],
    organization: Annotated[str, typer.Option(metavar="NAME", help="Who ran the suite.")] = "unknown",
) -> int:
    """Write scores and answers of a suite in the schema of Every Eval Ever, with a filled checklist for a paper."""
    from reports.every_eval import export
    from reports.frame import load_suite

    console = new_console()

    def export_one(one: RunOptions) -> int:
        name = name_of_run(one, "export-results", console)
        written = export(load_suite(one.store, name, one.scale, **one.variant), to, organization)
        print(
            f"{counted(written.evaluations, 'evaluation')} with {counted(written.samples, 'sample')} in {written.folder}"
        )
        print(f"answers to the NeurIPS checklist in {written.checklist}")
        return 0

    return each_suite(options, export_one, console)


def name_of_run(options: RunOptions, verb: str, console: "Console") -> str:
    """The name of a suite that has been run in the store.

    Raises:
        UserError: if it has not.
    """
    name = _name(options.suite, options.store, console)
    _refuse_unknown(options.suite, name, verb, options.store, options.scale)
    return name


def _known(store: Path) -> set[str]:
    """Names of the suites that have been run in a store, and of their manifests."""
    from harness.store.manifest import manifests

    return {name for each in manifests(store) for name in (each.suite, each.name)}


def _refuse_unknown(suite: str, name: str, verb: str, store: Path, scale: str = "") -> None:
    """Stop if a suite has never been run in a store.

    Raises:
        UserError: suggests running it, if there is such a suite, else a different run of the store, else listing them.
    """
    from harness.store.manifest import manifests
    from harness.suite.entries import PAPER
    from harness.suite.load import find_suite

    known = {each.suite: each for each in manifests(store)}
    if name in known:
        return
    try:
        find_suite(suite)
        fix = harness_command("run", suite, scale="" if scale == PAPER else scale, store=store)
    except UserError:
        fix = harness_command("list", "suites")
        if known:
            other = known[min(known)]
            fix = harness_command(verb, other.suite, scale=other.scale if verb != "sync" else "", store=store)
    raise UserError(f"{store}: suite '{name}' has not been run in this store{did_you_mean(name, known)}", fix=fix)


def _name(suite: str, store: Path, console: "Console") -> str:
    """The name of a suite that is given by name or by file; of a file, says if it has changed since its last run.

    Raises:
        UserError: for a file with the name of a different suite in the store.
    """
    from harness.store.manifest import manifests
    from harness.suite.load import find_suite
    from harness.suite.source import read_source, refuse_rival

    if not suite.endswith((".yaml", ".yml")):
        return suite
    source = read_source(find_suite(suite))
    for manifest in manifests(store):
        refuse_rival(manifest, source, store)
        if manifest.suite == source.name and manifest.sha256 not in ("", source.sha256):
            console.print(
                f"{suite} has changed since it was run ({manifest.created[:16]}); these are the results of that run. "
                f"To run it as it is now: {manifest.again('run', store)}",
                style="yellow",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    return source.name


def variant_of(suite: "Suite") -> "Options":
    """What tells a run of this suite from others at its scale."""
    return {"edits": suite.options["edits"], "backend": suite.options["backend"], "data": suite.data}


def report_run(plan: "Plan", console: "Console") -> None:
    """Write a suite's tables and import its cells into MLflow after a run; neither stops the other.

    Raises:
        UserError: after both were tried.
    """
    from harness.store.manifest import find_manifest

    suite, store, options = plan.suite, plan.store.root, variant_of(plan.suite)
    obstacle = None
    try:
        _write_tables(store, suite.name, suite.scale, console, TABLE_LINES, **options)
    except UserError as error:
        obstacle = error
    manifest = find_manifest(store, suite.name, suite.scale, **options)
    _import(store, manifest.name, None, console)
    if suite.judge:
        text = f"let {suite.judge} judge the answers: {manifest.again('judge', store)}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if obstacle:
        raise obstacle


def _import(store: Path, name: str | None, uri: str | None, console: "Console") -> None:
    """Import finished cells into MLflow, and say how many there are and how to look at them."""
    from harness.store.tracking import sync

    result = sync(store, name, uri, _summarise(console))
    console.print(f"MLflow: {_sentence(result)}; view them with:")
    console.print(f"  {result.ui_command}", markup=False, highlight=False, soft_wrap=True)


def _write_tables(
    store: Path, suite: str, scale: str, console: "Console", lines: int | None, **options: "Unpack[Options]"
) -> None:
    """Write a report, print as much of it as fits, and list its files: one line per table or figure."""
    from reports import write_report

    written = write_report(store, suite, scale, console, lines=lines, **options)
    console.print(f"tables and figures in {written[0].parent}:", markup=False, highlight=False, soft_wrap=True)
    for stem, files in itertools.groupby(sorted(written), lambda path: path.stem):
        endings = "  ".join(path.suffix for path in files)
        console.print(f"  {stem:<24} {endings}", markup=False, highlight=False, soft_wrap=True)


def write_document(options: RunOptions, console: "Console") -> None:
    """Combine the reports of a suite of suites into one document, and say where it is; nothing for an ordinary suite."""
    from reports import document

    collection = collection_of(options.suite)
    if collection is None:
        return
    names = [_name(name, options.store, console) for name in collection.suites]
    written = document.write_document(
        *(options.store, collection.name, collection.description, names, options.scale, console), **options.variant
    )
    for file in written:
        console.print(f"document of all suites: {file}", markup=False, highlight=False, soft_wrap=True)


def _summarise(console: "Console") -> "Summarise":
    """Compute Score, Freq and times of a suite for MLflow; if a report is impossible, say so and go on without."""
    from harness.store.mlflow_content import NO_SUMMARY, SuiteSummary
    from reports.summary import summarise

    def tried(store: Path, manifest: "Manifest") -> SuiteSummary:
        try:
            return summarise(store, manifest)
        except UserError as error:
            text = f"MLflow: no Score, Freq or relative times for {manifest.name}: {error.message}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
            return NO_SUMMARY

    return tried


def _sentence(result: "SyncResult") -> str:
    """Summarise the result of an MLflow import."""
    sentence = f"{counted(result.created, 'run')} created, {result.replaced} replaced, {result.skipped} unchanged"
    sentence += f", {result.removed} removed" if result.removed else ""
    if result.refused:
        cell, reason = result.refused[0]
        sentence += f", {len(result.refused)} refused by MLflow ({cell}: {reason})"
    return sentence
