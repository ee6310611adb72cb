"""The command line: all verbs with their options, and the tables and MLflow runs that a run ends with."""

import dataclasses
import functools
import importlib
import inspect
import io
import itertools
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from harness import inventory, registry
from harness.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from harness.api import Launcher
    from harness.plan.plan import Plan
    from harness.store.store import Store
    from harness.store.tracking import SyncResult
    from harness.suite import Suite

Number = TypeVar("Number", int, float)

EVERY_S = {"status": "5", "sync": "30"}
"""Seconds between two looks of a verb with `--watch`, where none are given."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0 if all went well, 1 if a cell failed, 2 for a mistake that the user can fix (printed as one line), 130 if
        interrupted, 141 if nobody reads the output any more.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a log file shows how far a killed run came
    try:
        typer.main.get_command(app).main(arguments, prog_name="harness")
    except UserError as error:
        print(f"harness: {error}", file=sys.stderr)
        return 2
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


class Verbs(TyperGroup):
    """The verbs below, and a group of commands for each backend that has some."""

    def invoke(self, ctx: Any) -> NoReturn:
        """Run a verb; what it returns is the exit code."""
        try:
            code = super().invoke(ctx)
        except KeyboardInterrupt:
            print("harness: interrupted; finished cells are kept, the same command continues", file=sys.stderr)
            code = 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing is left to complain at exit
            code = 141
        raise typer.Exit(code or 0)

    def list_commands(self, ctx: Any) -> list[str]:
        """All verbs, those of backends last."""
        return [*super().list_commands(ctx), *(name for name, each in registry.backends.all().items() if each.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A verb, or the commands of a backend; None if there is neither."""
        if found := super().get_command(ctx, cmd_name):
            return found
        backend = registry.backends.all().get(cmd_name)
        if backend is None or not backend.commands:
            return None
        module, _, name = backend.commands.partition(":")
        group = typer.main.get_group(getattr(importlib.import_module(module), name))
        group.name = cmd_name  # for the list of commands in --help
        return group


class Watching(TyperCommand):
    """A verb with `--watch [S]`, whose seconds may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the seconds where they are left out."""
        return super().parse_args(ctx, list(_with_seconds(args, EVERY_S[str(self.name)])))


def _with_seconds(arguments: Sequence[str], seconds: str) -> Iterator[str]:
    for argument, following in itertools.zip_longest(arguments, arguments[1:]):
        yield argument
        if argument == "--watch" and (following is None or re.match(r"-[^\d.]", following)):
            yield seconds


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: harness run main_table --scale mini --only method=none,ft-l,onceedit",
)
data_app = typer.Typer(help="List, show or fetch records.", no_args_is_help=True)
app.add_typer(data_app, name="data")


# ── Options that several verbs share


def _above_zero(kind: type[Number], text: str) -> Number:
    try:
        number = kind(text)
    except ValueError:
        number = kind(0)
    if not 0 < number < math.inf:
        what = "a whole number" if kind is int else "a number"
        raise typer.BadParameter(f"expected {what} above 0, found '{text}'")
    return number


def _seconds(text: str) -> float:
    return _above_zero(float, text)


def _count(text: str) -> int:
    return _above_zero(int, text)


def _plug_in(names: list[str] | None) -> list[str] | None:
    """Load plug-ins and add them to the environment, where worker processes and cluster jobs find them."""
    if names:
        paths = (str(Path(name).expanduser().resolve()) if name.endswith(".py") else name for name in names)
        os.environ[registry.PLUGINS] = ":".join(dict.fromkeys([*registry.plugin_names(), *paths]))
        registry.load_plugins()
    return names


def _suite_names() -> list[str]:
    from harness.suite.load import suite_files

    return list(suite_files())


def _scale_names() -> list[str]:
    from harness.suite.scale import PAPER, scale_files

    return [PAPER, *scale_files()]


StoreOption = Annotated[Path, typer.Option("--store", metavar="DIR", help="Folder of results.")]
CellArgument = Annotated[str, typer.Argument(metavar="CELL", help="Cell id or folder name, or the beginning of one.")]
PluginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE_OR_FILE",
        callback=_plug_in,
        help="Python module or file that adds methods, formats, protocols, tables or launchers. Repeatable.",
    ),
]
ScaleOption = Annotated[str, typer.Option(help="Scale that it was run at.", autocompletion=lambda: _scale_names())]
NoReportOption = Annotated[bool, typer.Option("--no-report", help="Leave out tables and MLflow.")]
DetachOption = Annotated[
    bool, typer.Option("--detach", help="On a cluster: return once all is submitted; run again to follow.")
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="DIR", envvar="HARNESS_DATA", help="Folder of upstream files (default: synthetic data)."
    ),
]


@dataclasses.dataclass(frozen=True, slots=True)
class SuiteOptions:
    """What to run, how large and where: the options of every verb about a suite."""

    suite: Annotated[
        str,
        typer.Argument(
            metavar="SUITE", help="Name of a suite, or a suite file.", autocompletion=lambda: _suite_names()
        ),
    ]
    scale: Annotated[
        str | None,
        typer.Option(help="How large, for example mini; as written by default.", autocompletion=lambda: _scale_names()),
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=NAME[,NAME]", help="Only method=…, model=… or dataset=…. Repeatable."),
    ] = None
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of upstream files (default: HARNESS_DATA).")
    ] = None
    edits: Annotated[int | None, typer.Option(metavar="N", help="Edits per cell instead of the suite's.")] = None
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Whose implementations, instead of the suite's choice: native, auto (another backend's where it has the "
            "method and is installed), or a backend of `harness list backends`.",
        ),
    ] = None
    launch: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="Launch profile instead of the suite's, for example local.")
    ] = None
    store: StoreOption = Path("results")
    plugin: PluginOption = None


def suite_verb(function: Callable[..., int]) -> Callable[..., int]:
    """Give a verb the fields of `SuiteOptions` as options, in front of its own."""

    @functools.wraps(function)
    def verb(**options: Any) -> int:
        shared = {field.name: options.pop(field.name) for field in dataclasses.fields(SuiteOptions)}
        return function(SuiteOptions(**shared), **options)

    own = list(inspect.signature(function).parameters.values())[1:]
    parameters = [*inspect.signature(SuiteOptions).parameters.values(), *own]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    verb.__annotations__ = {each.name: each.annotation for each in parameters}
    return verb


# ── Verbs about a suite


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"harness {metadata.version('editing-harness')}")
        raise typer.Exit


@app.callback()
def global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    plugin: PluginOption = None,
) -> None:
    """Compare knowledge-editing methods across language models."""


@app.command()
@suite_verb
def run(
    options: SuiteOptions,
    *,
    force: Annotated[bool, typer.Option("--force", help="Run finished cells again.")] = False,
    no_report: NoReportOption = False,
    detach: DetachOption = False,
) -> int:
    """Run what is missing of a suite; then write its tables and MLflow runs."""
    from harness.run.start import run as run_plan

    plan, launcher = _planned(options)
    report = None if no_report else _report
    return run_plan(plan, launcher, _console(), force=force, detach=detach, report=report)


@app.command("plan")
@suite_verb
def plan_(options: SuiteOptions) -> int:
    """Print cells, artifacts, and what is done or missing; run nothing."""
    from rich.markup import escape

    from harness.plan.describe import describe
    from harness.run.start import lacks

    console = _console()
    plan, launcher = _planned(options)
    describe(plan, console)
    for sentence in launcher.describe(plan):
        console.print(sentence, markup=False, soft_wrap=True)
    for reason in lacks(plan, launcher):
        console.print(f"[yellow]cannot run:[/yellow] {escape(reason)}", soft_wrap=True)
    return 0


@app.command(cls=Watching)
@suite_verb
def status(
    options: SuiteOptions,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="As data, for scripts.")] = False,
    watch: Annotated[
        float | None, typer.Option(parser=_seconds, metavar="[S]", help="Again every S seconds (default: 5).")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Of many cells, also those that wait or are done.")] = False,
) -> int:
    """Print which cells are done, failed, running and still to do; exit with 1 if one failed."""
    from harness.run.status import show

    plan, _ = _planned(options)
    return show(plan, _console(), as_json=as_json, watch_s=watch, everything=everything)


@app.command()
@suite_verb
def retry(
    options: SuiteOptions,
    *,
    failed: Annotated[bool, typer.Option("--failed", help="Failed cells and no others, as without it.")] = False,
    no_report: NoReportOption = False,
    detach: DetachOption = False,
) -> int:
    """Run the failed cells of a suite again, and nothing else that is missing."""
    from harness.run.start import run as run_plan

    plan, launcher = _planned(options)
    report = None if no_report else _report
    return run_plan(plan, launcher, _console(), failed_only=True, detach=detach, report=report)


@app.command()
@suite_verb
def cancel(options: SuiteOptions) -> int:
    """Cancel the jobs of a suite on a cluster; finished cells stay."""
    from harness.run.status import cancel as end
    from harness.store.store import Store

    suite = _suite(options)
    return end(Store(options.store), suite.name, suite.scale, _console())


# ── Verbs about a store


@app.command()
def logs(
    cell: CellArgument,
    lines: Annotated[int, typer.Option(parser=_count, metavar="N", help="At most this many of each file.")] = 100,
    store: StoreOption = Path("results"),
) -> int:
    """Print the end of what a cell has logged, or its job if it has not ended."""
    from harness.run.status import logs as show
    from harness.store.store import Store

    return show(Store(store), cell, lines)


@app.command(cls=Watching)
def sync(
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="Name of a suite, or its file; default: all of the store.")
    ] = None,
    watch: Annotated[
        float | None, typer.Option(parser=_seconds, metavar="[S]", help="Again every S seconds (default: 30).")
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(metavar="URI", help="MLflow server (default: MLFLOW_TRACKING_URI, else STORE/mlflow.db)."),
    ] = None,
    store: StoreOption = Path("results"),
) -> int:
    """Import finished cells into MLflow, once or whenever there are new ones."""
    from harness.store.store import DONE
    from harness.store.tracking import sync as import_runs

    console, seen = _console(), None
    name = _name(suite) if suite else None
    while True:
        now = {file: file.stat().st_mtime_ns for file in sorted((store / "cells").glob(f"[!.]*/{DONE}"))}
        if now != seen:
            console.print(f"MLflow: {_sentence(import_runs(store, name, tracking_uri))}")
        if watch is None:
            return 0
        seen = now
        time.sleep(watch)


@app.command()
def report(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="Name of a suite, or its file.")],
    scale: ScaleOption = "paper",
    store: StoreOption = Path("results"),
    plugin: PluginOption = None,
) -> int:
    """Write the tables of a suite from its finished cells."""
    _write_tables(store, _name(suite), scale, _console())
    return 0


@app.command()
def explain(cell: CellArgument, store: StoreOption = Path("results")) -> int:
    """Print where the numbers of a cell come from."""
    from rich.pretty import pprint

    from harness.files import understood
    from harness.store.store import FAILED, Store

    folder = _cell(Store(store), cell)
    for name in ("cell", "metrics", "cost", "provenance"):
        file = folder / f"{name}.json"
        if file.is_file():
            print(f"── {name}")
            with understood(folder):
                pprint(json.loads(file.read_text()), expand_all=True)
    if (folder / FAILED).is_file():
        print(f"── failed: {(folder / FAILED).read_text().strip()}")
    return 0


# ── Verbs about what there is


@app.command("list")
def list_(
    kind: Annotated[
        inventory.Kind, typer.Argument(metavar="KIND", show_choices=False, help=", ".join(get_args(inventory.Kind)))
    ],
    plugin: PluginOption = None,
) -> int:
    """List what a suite or the command line can name."""
    columns, rows = inventory.LISTINGS[kind]
    _print_table(columns, rows())
    return 0


@app.command()
def schema() -> int:
    """Print the JSON Schema of suite files."""
    from harness.suite import suite_json_schema

    print(json.dumps(suite_json_schema(), indent=2))
    return 0


@app.command()
def doctor(plugin: PluginOption = None) -> int:
    """Say what is installed, what is missing and how to get it."""
    from rich.markup import escape

    console = _console()
    for finding in inventory.findings():
        mark = "[green]✓[/green]" if finding.is_present else "[yellow]–[/yellow]"
        console.print(f"{mark} {finding.what}: {escape(finding.detail)}", highlight=False, soft_wrap=True)
    return 0


# ── Verbs about records


@data_app.command("list")
def data_list(
    name: Annotated[str | None, typer.Argument(metavar="DATASET", help="Dataset; default: all.")] = None,
    data: DataOption = None,
    plugin: PluginOption = None,
) -> int:
    """List the files of a folder, how they are used, and their records; usable ones are sound and ask something new."""
    from harness.data.show import describe
    from harness.data.sources import SYNTHETIC

    numbers = ("records", "usable", "test", "dev")
    rows = []
    for file in describe(data or SYNTHETIC, name):
        counts = (f"{count:,}" for count in (file.rows, file.usable, file.test, file.dev))
        rows.append((file.dataset, file.role, *counts, file.format, file.path))
    _print_table(("dataset", "used for", *numbers, "format", "file"), rows, numbers)
    return 0


@data_app.command("show")
def data_show(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="Dataset.")],
    data: DataOption = None,
    record: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Id of the record; default: the first.")
    ] = None,
    plugin: PluginOption = None,
) -> int:
    """Show a record in readable form."""
    from harness.data.show import show
    from harness.data.sources import SYNTHETIC

    print(show(name, data or SYNTHETIC, record))
    return 0


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str | None, typer.Argument(metavar="DATASET", help="Dataset; default: all.")] = None,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write to.")] = Path("data"),
    plugin: PluginOption = None,
) -> int:
    """Download the upstream files of a dataset and verify them."""
    from harness.data.fetch import fetch

    names = [name] if name else [each for each, info in registry.datasets.all().items() if info.downloads]
    for each in names:
        for fetched in fetch(each, to):
            print(fetched)
    print(f"use them: python -m harness data list --data {to}")
    return 0


# ── What the verbs share


def _console(width: int = 120) -> "Console":
    """The terminal as it is; a file or a pipe gets room for whole lines."""
    from rich.console import Console

    return Console(width=None if Console().is_terminal else width)


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Print rows under their headings; in a file or a pipe, one line each."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    _console(width=2000).print(table)


def _suite(options: SuiteOptions) -> "Suite":
    from harness.suite.load import find_suite, load_suite

    suite = load_suite(
        find_suite(options.suite),
        scale=options.scale,
        only=options.only or (),
        data=options.data,
        edits=options.edits,
        backend=options.backend,
    )
    return dataclasses.replace(suite, launch=options.launch, launch_at="--launch") if options.launch else suite


def _planned(options: SuiteOptions) -> "tuple[Plan, Launcher]":
    """The plan of a suite, and what launches it."""
    from harness.plan.plan import Plan
    from harness.run.profiles import load_profile
    from harness.store.store import Store

    suite = _suite(options)
    launcher = load_profile(suite.launch, suite.launch_at)
    return Plan(suite, Store(options.store), launcher.device(suite.device)), launcher


def _name(suite: str) -> str:
    """The name of a suite, of which its file may be given."""
    from harness.suite import load_suite

    return load_suite(suite).name if suite.endswith((".yaml", ".yml")) else suite


def _cell(store: "Store", name: str) -> Path:
    """The folder of the one cell that a name fits."""
    from harness.store.store import is_called

    found = sorted(folder for folder in store.cells() if is_called(folder, name))
    if len(found) != 1:
        known = f": {', '.join(found[:5])}{', …' * (len(found) > 5)}" if found else ""
        example = min(found or store.cells(), default="")
        fix = f"python -m harness explain {example} --store {store.root}" if example else "name its store with --store"
        raise UserError(f"'{name}' fits {len(found)} cells of {store.root}{known}", fix=fix)
    return store.cell(found[0]).path


def _report(plan: "Plan", console: "Console") -> None:
    """Write the tables of a suite that was run, and import its cells into MLflow."""
    from harness.store.tracking import sync

    suite, store = plan.suite, plan.store.root
    _write_tables(store, suite.name, suite.scale, console)
    result = sync(store, f"{suite.name}.{suite.scale}", None)
    console.print(f"MLflow: {_sentence(result)}; look at them with:")
    console.print(f"  {result.ui_command}", markup=False, highlight=False, soft_wrap=True)


def _write_tables(store: Path, suite: str, scale: str, console: "Console") -> None:
    from reports import write_report

    for path in write_report(store, suite, scale, console):
        console.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _sentence(result: "SyncResult") -> str:
    """What became of cells in MLflow."""
    return f"{result.created} runs created, {result.replaced} replaced, {result.skipped} already there"
