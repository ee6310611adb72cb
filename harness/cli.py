"""Command-line interface: all commands and options, and the reports written after a run."""

import contextlib
import dataclasses
import errno
import functools
import importlib.util
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
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, TypeVar, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from harness import cli_models, inventory, registry
from harness.commands import PLUGINS, harness_command, nearest_existing, plugin_names
from harness.errors import NoMatchError, UserError, did_you_mean
from harness.files import is_full, not_writable
from harness.plain_text import degrade

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

    from harness.api import Launcher
    from harness.live.model import LiveModel
    from harness.plan.cell import Cell
    from harness.plan.plan import Plan
    from harness.store.manifest import Manifest
    from harness.store.tracking import Summarise, SyncResult
    from harness.suite import Suite
    from harness.suite.collection import Collection

Number = TypeVar("Number", int, float)

EVERY_S = {"status": "5", "sync": "30"}
"""Default interval of `--watch` in seconds, by command."""
TABLE_LINES = 38
"""Of the tables, at the end of a run: with everything else there, at most a screen of 60 lines."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 1 if a cell failed or cannot run here, 2 for an error that the user can fix (printed as one line),
        130 if interrupted, 141 if the output pipe was closed.
    """
    degrade(sys.stdout)
    degrade(sys.stderr)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # so that a log file shows how far a killed run got
    with _as_arguments(arguments):
        try:
            typer.main.get_command(app).main(arguments, prog_name="harness")
        except UserError as error:
            print(f"harness: {error}", file=sys.stderr)
            return 2
        except OSError as error:
            if not is_full(error):
                raise
            print(f"harness: {not_writable(Path(error.filename or '.'), error.errno or 0)}", file=sys.stderr)
            return 2
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
    return 0


@contextlib.contextmanager
def _as_arguments(arguments: Sequence[str] | None) -> Iterator[None]:
    """Make these the arguments of this process, which suggestions repeat and provenance records."""
    before = sys.argv
    sys.argv = before if arguments is None else [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


class Verbs(TyperGroup):
    """The commands below, and a command group for each backend that has one."""

    def invoke(self, ctx: Any) -> NoReturn:
        """Run a command and exit with its return value."""
        try:
            code = super().invoke(ctx)
        except KeyboardInterrupt:
            print("harness: interrupted, but finished cells are kept; run it again to continue", file=sys.stderr)
            code = 130
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's flush at exit fails
            code = 141
        raise typer.Exit(code or 0)

    def list_commands(self, ctx: Any) -> list[str]:
        """List all commands, those of backends last."""
        return [*super().list_commands(ctx), *(name for name, each in registry.backends.all().items() if each.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Find a command or a backend's command group; None if there is neither."""
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
    """A command with `--watch [S]`, where the interval is optional."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the default interval if it is omitted."""
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
data_app = typer.Typer(help="List, show or download datasets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(cli_models.app, name="models")


# ── Shared options


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
    """Load plug-ins and add them to the environment, so that worker processes and cluster jobs load them too."""
    if names:
        paths = (str(Path(name).expanduser().resolve()) if name.endswith(".py") else name for name in names)
        os.environ[PLUGINS] = ":".join(dict.fromkeys([*plugin_names(), *paths]))
        registry.load_plugins()
    return names


def _results_folder(store: Path) -> Path:
    """Refuse a path that neither is a folder nor can become one."""
    try:
        there = nearest_existing(store)
    except OSError as error:  # too long, for example
        raise not_writable(store, error.errno or 0) from error
    if not there.is_dir():
        raise not_writable(store, errno.ENOTDIR)
    return store


def _suite_names() -> list[str]:
    from harness.suite.load import suite_files

    return list(suite_files())


def _scale_names() -> list[str]:
    from harness.suite.entries import PAPER
    from harness.suite.scale import scale_files

    return [PAPER, *scale_files()]


def _formats() -> list[str]:
    from reports.results import FORMATS

    return list(FORMATS)


StoreOption = Annotated[Path, typer.Option("--store", metavar="DIR", callback=_results_folder, help="Results folder.")]
CellArgument = Annotated[str, typer.Argument(metavar="CELL", help="Cell id or folder name, or a prefix of either.")]
PluginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE_OR_FILE",
        callback=_plug_in,
        help="Python module or file that adds methods, formats, protocols, tables or launchers. Repeatable.",
    ),
]
ScaleOption = Annotated[str, typer.Option(help="Scale of the run.", autocompletion=lambda: _scale_names())]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Stop before anything is done if one cell cannot run here.")
]
NoReportOption = Annotated[bool, typer.Option("--no-report", help="Skip tables and MLflow.")]
DetachOption = Annotated[
    bool, typer.Option("--detach", help="On a cluster: return once all jobs are submitted; run again to follow.")
]
DataOption = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="DIR", envvar="HARNESS_DATA", help="Folder of upstream files (default: synthetic data)."
    ),
]


@dataclasses.dataclass(frozen=True, slots=True)
class SuiteOptions:
    """Options of every command that takes a suite."""

    suite: Annotated[
        str,
        typer.Argument(metavar="SUITE", help="Name or file of a suite.", autocompletion=lambda: _suite_names()),
    ]
    scale: Annotated[
        str | None,
        typer.Option(help="Scale, for example mini; default: as written.", autocompletion=lambda: _scale_names()),
    ] = None
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=NAME[,NAME]", help="Restrict to method=…, model=… or dataset=…. Repeatable."),
    ] = None
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of upstream files (default: HARNESS_DATA).")
    ] = None
    edits: Annotated[int | None, typer.Option(metavar="N", help="Edits per cell; overrides the suite.")] = None
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Implementations to use; overrides the suite: native, auto (another backend's if it has the method and is "
            "installed), or a name from `harness list backends`.",
        ),
    ] = None
    launch: Annotated[
        str | None, typer.Option(metavar="PROFILE", help="Launch profile, for example local; overrides the suite.")
    ] = None
    store: StoreOption = Path("results")
    plugin: PluginOption = None


def suite_verb(function: Callable[..., int]) -> Callable[..., int]:
    """Decorator: add the fields of `SuiteOptions` to a command, before its own options."""

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


# ── Commands on a suite


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
    strict: StrictOption = False,
    no_report: NoReportOption = False,
    detach: DetachOption = False,
) -> int:
    """Run the unfinished cells of a suite, then write its tables and MLflow runs."""
    return _run(options, no_report, is_strict=strict, force=force, detach=detach)


@app.command("plan")
@suite_verb
def plan_(options: SuiteOptions) -> int:
    """Show the cells and artifacts of a suite, and what is done or missing, without running anything."""
    from harness.plan.describe import describe, describe_together
    from harness.run.start import print_lacks

    console, plans = _console(), list["Plan"]()

    def describe_one(one: SuiteOptions) -> int:
        plan, launcher = _planned(one)
        plans.append(plan)
        describe(plan, console)
        for sentence in launcher.describe(plan):
            console.print(sentence, markup=False, soft_wrap=True)
        print_lacks(plan, console, launcher)
        return 0

    code = _each(options, describe_one, console)
    if len(plans) > 1:
        describe_together(plans, console)
    return code


@app.command(cls=Watching)
@suite_verb
def status(
    options: SuiteOptions,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
    watch: Annotated[
        float | None, typer.Option(parser=_seconds, metavar="[S]", help="Refresh every S seconds (default: 5).")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="List all cells, even if there are many.")] = False,
) -> int:
    """Show which cells are done, failed, running or still to do; exit with 1 if one failed."""
    from rich.console import Console

    from harness.run.status import show

    console = _console()

    def show_one(one: SuiteOptions) -> int:
        plan, launcher = _planned(one)
        return show(plan, launcher, console, as_json=as_json, watch_s=watch, everything=everything)

    return _each(options, show_one, Console(stderr=True) if as_json else console)


@app.command()
@suite_verb
def retry(
    options: SuiteOptions,
    *,
    failed: Annotated[bool, typer.Option("--failed", help="Failed cells only; this is the default.")] = False,
    strict: StrictOption = False,
    no_report: NoReportOption = False,
    detach: DetachOption = False,
) -> int:
    """Run only the failed cells of a suite again."""
    return _run(options, no_report, failed_only=True, is_strict=strict, detach=detach)


@app.command()
@suite_verb
def cancel(options: SuiteOptions) -> int:
    """Cancel the cluster jobs of a suite; finished cells are kept."""
    from harness.run.status import cancel as end
    from harness.store.store import Store

    console = _console()
    return _each(options, lambda one: end(Store(one.store), _suite(one), console), console)


@app.command()
def tune(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="Method, as in a suite.")],
    model: Annotated[
        str, typer.Option(metavar="NAME[=SOURCE]", help="Model, as in a suite; NAME=SOURCE for one's own.")
    ],
    dataset: Annotated[str, typer.Option(metavar="NAME", help="Dataset, as in a suite.")] = "counterfact",
    trials: Annotated[
        int, typer.Option(parser=_count, metavar="N", help="Trials of the study, earlier ones included.")
    ] = 20,
    edits: Annotated[int, typer.Option(parser=_count, metavar="N", help="Dev records that a trial edits.")] = 30,
    parallel: Annotated[
        int, typer.Option(parser=_count, metavar="N", help="Trials proposed and launched together, for a cluster.")
    ] = 1,
    space: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ranges to search; default: the method's search.yaml.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write; default: hparams/METHOD/MODEL.yaml.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    scale: Annotated[str | None, typer.Option(help="Scale, for example mini.")] = None,
    data: Annotated[str | None, typer.Option(metavar="DIR", help="Folder of upstream files.")] = None,
    backend: Annotated[str, typer.Option(metavar="NAME", help="Implementation of the method.")] = registry.NATIVE,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the search.")] = 0,
    launch: Annotated[str | None, typer.Option(metavar="PROFILE", help="Launch profile.")] = None,
    store: StoreOption = Path("results"),
    plugin: PluginOption = None,
) -> int:
    """Search the hyper-parameters of a method for a model on dev records, and write the best ones to a file."""
    from harness import tune as tuning
    from harness.run.profiles import load_profile
    from harness.store.store import Store

    if importlib.util.find_spec("optuna") is None:
        raise UserError("`harness tune` needs Optuna", fix="pip install 'editing-harness[tune]'")
    question = tuning.Question(method, model, dataset, edits, scale, data, backend, space, seed)
    search = tuning.Tuning(
        question, Store(store), lambda suite: load_profile(launch or suite.launch, "--launch"), _console()
    )
    path = tuning.target(question, search.model, to, force)
    result = search.run(trials, parallel)
    tuning.write(result, question, path)
    print(f"best of {result.trials} trials: {result.best}" + (f"; before: {result.before}" if result.before else ""))
    print(f"wrote {path}")
    return 0


# ── Commands on a store


@app.command()
def logs(
    cell: CellArgument,
    lines: Annotated[int, typer.Option(parser=_count, metavar="N", help="Maximum number of lines per file.")] = 100,
    store: StoreOption = Path("results"),
) -> int:
    """Print the end of a cell's log, or of its job's output while it is unfinished."""
    from harness.run.status import logs as show
    from harness.store.store import Store

    return show(Store(store), cell, lines)


@app.command(cls=Watching)
def sync(
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="Name or file of a suite; default: all suites in the store.")
    ] = None,
    watch: Annotated[
        float | None, typer.Option(parser=_seconds, metavar="[S]", help="Repeat every S seconds (default: 30).")
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(metavar="URI", help="MLflow tracking URI (default: MLFLOW_TRACKING_URI, or STORE/mlflow.db)."),
    ] = None,
    store: StoreOption = Path("results"),
) -> int:
    """Import finished cells into MLflow, once or continuously."""
    from harness.store.store import DONE

    console, seen = _console(), None
    collection = _collection(suite) if suite else None
    names: list[str | None] = [_name(suite, store, console)] if suite and not collection else [None]
    if collection:
        names = [
            each for each in (_name(suite, store, console) for suite in collection.suites) if each in _known(store)
        ]
        if not names:
            raise UserError(
                f"{store}: no suite of {suite} has been run in this store", fix=harness_command("run", suite)
            )
    elif suite and names[0]:
        _refuse_unknown(suite, names[0].partition(".")[0], "sync", store)
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
def report(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="Name or file of a suite.")],
    *,
    scale: ScaleOption = "paper",
    everything: Annotated[bool, typer.Option("--all", help="Print all tables, not only the beginning.")] = False,
    data: DataOption = None,
    edits: Annotated[int | None, typer.Option(metavar="N", help="As in the run.")] = None,
    backend: Annotated[str | None, typer.Option(metavar="NAME", help="As in the run.")] = None,
    store: StoreOption = Path("results"),
    plugin: PluginOption = None,
) -> int:
    """Write the tables of a suite from its finished cells, also of earlier runs, and print the first."""
    console, lines = _console(), None if everything else TABLE_LINES

    def report_one(one: SuiteOptions) -> int:
        name = _name(one.suite, store, console)
        _refuse_unknown(one.suite, name, "report", store, scale)
        _write_tables(store, name, scale, console, lines, edits=edits, backend=backend, data=data)
        return 0

    options = SuiteOptions(suite, scale=scale, data=data, edits=edits, backend=backend, store=store)
    code = _each(options, report_one, console)
    _write_document(options, console)
    return code


@app.command()
def results(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="Name or file of a suite.")],
    *,
    form: Annotated[
        str,
        typer.Option("--format", metavar="FORMAT", help="csv, json or parquet.", autocompletion=lambda: _formats()),
    ] = "csv",
    to: Annotated[Path | None, typer.Option(metavar="FILE", help="File to write; default: standard output.")] = None,
    scale: ScaleOption = "paper",
    data: DataOption = None,
    edits: Annotated[int | None, typer.Option(metavar="N", help="As in the run.")] = None,
    backend: Annotated[str | None, typer.Option(metavar="NAME", help="As in the run.")] = None,
    store: StoreOption = Path("results"),
    plugin: PluginOption = None,
) -> int:
    """Write all numbers of a suite, one row per finished cell and protocol, as CSV, JSON or Parquet."""
    from harness.files import write_bytes
    from reports.results import FORMATS, as_bytes, load_results

    console = _console()
    name = _name(suite, store, console)
    _refuse_unknown(suite, name, "results", store, scale)
    chosen = next((known for known in FORMATS if known == form), None)
    if chosen is None:
        fix = harness_command("results", name, scale=scale, store=store, format=FORMATS[0])
        raise UserError(f"unknown format '{form}'{did_you_mean(form, set(FORMATS))}", fix=fix)
    content = as_bytes(load_results(store, name, scale, edits=edits, backend=backend, data=data), chosen)
    if to:
        write_bytes(to, content)
    else:
        sys.stdout.buffer.write(content)
    return 0


@app.command()
def explain(
    cell: CellArgument,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything that is known, as JSON.")] = False,
    store: StoreOption = Path("results"),
) -> int:
    """Show a cell on one screen: settings and their sources, scores, time, provenance, and why it failed."""
    from harness import examine
    from harness.store.store import Store

    folder = examine.find_cell(Store(store), cell, "explain")
    if as_json:
        print(json.dumps(examine.read_parts(folder), indent=1, ensure_ascii=False))
        return 0
    console = _console()
    for line in examine.explain(folder):
        console.print(line, markup=False, highlight=False, no_wrap=True, overflow="ellipsis")
    if folder.is_done:
        print(f"answers    {harness_command('answers', folder.path.name, store=store)}")
    return 0


@app.command()
def answers(
    cell: CellArgument,
    *,
    wrong: Annotated[
        bool,
        typer.Option("--wrong", help="Only answers that differ from the target or, for locality, from the unedited."),
    ] = False,
    axis: Annotated[str, typer.Option(metavar="AXIS", help="Only this axis, for example generality.")] = "",
    record: Annotated[str, typer.Option(metavar="ID", help="Only this record.")] = "",
    protocol: Annotated[str, typer.Option(metavar="NAME", help="Only this protocol, for example generation.")] = "",
    limit: Annotated[int, typer.Option(parser=_count, metavar="N", help="Maximum number of answers.")] = 20,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON with all columns; no limit unless given.")
    ] = False,
    store: StoreOption = Path("results"),
) -> int:
    """Show prompts, targets, and what the unedited and the edited model answer, with scores."""
    from harness import examine
    from harness.store.store import Store

    kept = Store(store)
    folder = examine.find_cell(kept, cell, "answers")
    rows = examine.answers(kept, folder, examine.Wanted(wrong, axis, record, protocol))
    if as_json:
        print(json.dumps(examine.as_records(rows), indent=1, ensure_ascii=False))
        return 0
    console = _console()
    shown = examine.plain_rows(rows[:limit])
    if console.is_terminal:
        _print_wrapped(tuple(examine.COLUMNS.values()), shown)
    else:
        for row in (examine.COLUMNS.values(), *shown):
            print("\t".join(row))
    said = [f"{len(shown)} of {len(rows)} answers"]
    if len(rows) > limit:
        said.append(f"all: --limit {len(rows)}")
    if len(rows) and rows["unedited"].isna().all():
        said.append("no cell of the unedited model (method none) with the same model and records in this store")
    print("; ".join(said), file=sys.stderr)
    return 0


# ── Edited models of a store

ChatTemplate = Literal["auto", "chat", "none"]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where the model runs.")]
LengthOption = Annotated[
    int, typer.Option("--max-tokens", parser=_count, metavar="N", help="Longest answer in tokens.")
]


@app.command()
def export(
    cell: CellArgument,
    *,
    to: Annotated[Path, typer.Option(metavar="DIR", help="New folder.")],
    device: DeviceOption = "auto",
    store: StoreOption = Path("results"),
    plugin: PluginOption = None,
) -> int:
    """Write a cell's edited model to a folder that plain transformers or `harness.load_edited` loads."""
    from harness.live.export import export as write
    from harness.live.opening import check

    with _opened(cell, "export", store, device) as (live, found):
        checked = check(live, found, store)
        remarks = () if checked.is_same else (f"when it was exported, {checked}",)
        written = write(live, to, remarks)
    for line in (str(checked), *(f"note: {remark}" for remark in written.remarks)):
        print(line)
    with_what = "transformers or harness.load_edited" if written.kind == "checkpoint" else "harness.load_edited"
    print(f"wrote {to} ({written.size_bytes / 1e6:,.0f} MB), for {with_what}; see {to / 'README.md'}")
    return 0


@app.command()
def ask(
    cell: CellArgument,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Text that the models continue.")],
    *,
    template: Annotated[
        ChatTemplate, typer.Option(help="`chat`: as a message, by the model's chat template.")
    ] = "none",
    max_tokens: LengthOption = 32,
    device: DeviceOption = "auto",
    store: StoreOption = Path("results"),
    plugin: PluginOption = None,
) -> int:
    """Show what the unedited and the edited model of a cell answer to a prompt."""
    from harness.live.talk import SideBySide

    with _opened(cell, "ask", store, device) as (live, _):
        SideBySide(live, template, max_tokens).ask(prompt, _write)
    return 0


@app.command()
def chat(
    cell: CellArgument,
    *,
    template: Annotated[ChatTemplate, typer.Option(help="`auto`: the model's chat template if it has one.")] = "auto",
    max_tokens: LengthOption = 128,
    device: DeviceOption = "auto",
    store: StoreOption = Path("results"),
    plugin: PluginOption = None,
) -> int:
    """Talk to the unedited and the edited model of a cell, line by line until the end of the input."""
    from harness.live.talk import talk

    def lines() -> Iterator[str]:
        with contextlib.suppress(EOFError):
            while True:
                yield input("> " if sys.stdin.isatty() else "")

    with _opened(cell, "chat", store, device) as (live, _):
        talk(live, lines(), template, max_tokens, _write)
    return 0


@app.command()
def serve(
    cell: CellArgument,
    *,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(parser=_count, metavar="N", help="Port to listen on.")] = 8000,
    max_tokens: LengthOption = 256,
    device: DeviceOption = "auto",
    store: StoreOption = Path("results"),
    plugin: PluginOption = None,
) -> int:
    """Serve the edited and the unedited model of a cell with an OpenAI-compatible interface."""
    if missing := [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise UserError(f"`harness serve` needs {' and '.join(missing)}", fix="pip install 'editing-harness[serve]'")
    import uvicorn

    from harness.live.server import application, listening

    with listening(host, port) as socket, _opened(cell, "serve", store, device) as (live, found):
        print(f"serving '{found.folder}' and 'unedited' on http://{host}:{port}/v1 until Ctrl-C")
        app = application(live, found.folder, max_tokens)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[socket])
    return 0


# ── Listings


@app.command("list")
def list_(
    kind: Annotated[
        inventory.Kind, typer.Argument(metavar="KIND", show_choices=False, help=", ".join(get_args(inventory.Kind)))
    ],
    plugin: PluginOption = None,
) -> int:
    """List the available names of a kind."""
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
    """Check what is installed, what is missing and how to get it."""
    from rich.markup import escape

    console = _console()
    for finding in inventory.findings():
        mark = "[green]✓[/green]" if finding.is_present else "[yellow]–[/yellow]"
        console.print(f"{mark} {finding.what}: {escape(finding.detail)}", highlight=False, soft_wrap=True)
    return 0


# ── Commands on datasets


_FOREIGN = 20
"""Ignored files that `data list` names."""


@data_app.command("list")
def data_list(
    name: Annotated[str | None, typer.Argument(metavar="DATASET", help="Dataset; default: all.")] = None,
    data: DataOption = None,
    plugin: PluginOption = None,
) -> int:
    """List dataset files with their role and record counts; usable records are valid and have a new prompt."""
    from harness.data.show import contradictions, describe, ignored, left_out
    from harness.data.sources import SYNTHETIC

    numbers = ("records", "usable", "test", "dev")
    rows = []
    for file in describe(data or SYNTHETIC, name):
        counts = (f"{count:,}" for count in (file.rows, file.usable, file.test, file.dev))
        rows.append((file.dataset, file.role, *counts, file.format, file.path))
    _print_table(("dataset", "used for", *numbers, "format", "file"), rows, numbers)
    for line in contradictions(data or SYNTHETIC, name):
        print(f"if all of it is edited: {line}")
    for line in left_out(data or SYNTHETIC, name):
        print(line)
    foreign = [] if name else ignored(data or SYNTHETIC)
    for line in foreign[:_FOREIGN]:
        print(f"ignored: {line}")
    if len(foreign) > _FOREIGN:
        print(f"ignored: {len(foreign) - _FOREIGN} more files")
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
    """Show a record as text."""
    from harness.data.show import show
    from harness.data.sources import SYNTHETIC

    print(show(name, data or SYNTHETIC, record))
    return 0


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str | None, typer.Argument(metavar="DATASET", help="Dataset; default: all.")] = None,
    to: Annotated[Path, typer.Option(metavar="DIR", help="Output folder.")] = Path("data"),
    plugin: PluginOption = None,
) -> int:
    """Download a dataset's upstream files and verify their checksums."""
    from harness.data.fetch import fetch

    names = [name] if name else [each for each, info in registry.datasets.all().items() if info.downloads]
    for each in names:
        with _downloads() as report:
            done = fetch(each, to, report)
        for fetched in done:
            print(fetched)
    print(f"use them: {harness_command('data', 'list', data=to)}")
    return 0


@data_app.command("check")
def data_check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of records in any known format.")],
    plugin: PluginOption = None,
) -> int:
    """Check every record of a file: what can be used, what cannot and why, and what is asked."""
    from harness.data.check import check

    report = check(file)
    found = report.file
    print(f"{file}: {found.format.title}, dataset {found.format.dataset}")
    print(f"{found.rows:,} records with {found.edits:,} edits, {len(found.records):,} of them usable")
    rows = [
        (name, kind or "–", f"{asked:,}", f"{having:,}") for (name, kind), (asked, having) in report.questions.items()
    ]
    if rows:
        _print_table(("field", "kind", "questions", "records"), rows, ("questions", "records"))
    for line in (*report.problems, *report.remarks):
        print(line)
    return 1 if report.problems else 0


@data_app.command("convert")
def data_convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of records in any known format.")],
    to: Annotated[Path, typer.Option(metavar="FILE", help="JSON Lines file to write.")],
    plugin: PluginOption = None,
) -> int:
    """Write the usable records of a file as JSON Lines in the harness's own format."""
    from harness.data.check import convert

    found = convert(file, to)
    print(f"{to}: {len(found.records):,} records from {found.rows:,} of {found.format.title}")
    if left_out := found.left_out():
        print(left_out)
    return 0


# ── Helpers


@contextlib.contextmanager
def _opened(cell: str, verb: str, store: Path, device: str) -> "Iterator[tuple[LiveModel, Cell]]":
    """The edited model of a cell inside the body; messages about it go to standard error."""
    from rich.console import Console

    from harness import examine
    from harness.live.opening import device_of, open_cell
    from harness.plan.recall import recalled
    from harness.run.progress import Display
    from harness.store.store import Store

    kept, console = Store(store), Console(stderr=True)
    found = recalled(examine.find_cell(kept, cell, verb))
    with Display(console) as display:
        live = open_cell(found, kept, device_of(device), display)
    try:
        yield live, found
    finally:
        live.revert()


def _write(text: str) -> None:
    """Print a part of a line at once."""
    print(text, end="", flush=True)


@contextlib.contextmanager
def _downloads() -> "Iterator[Callable[[str, int, int | None], None]]":
    """Progress bars in the terminal, one per file."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(file: str, received: int, total: int | None) -> None:
            if file not in tasks:
                tasks[file] = bars.add_task(file, total=total)
            bars.update(tasks[file], completed=received)

        yield report


def _console(width: int = 120) -> "Console":
    """Console with the terminal's width; files and pipes get a fixed one, so that lines are not wrapped."""
    from rich.console import Console

    return Console(width=None if Console().is_terminal else width)


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Print a table; in a file or a pipe, every row is one line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    _console(width=2000).print(table)


def _say_hello(options: SuiteOptions, console: "Console") -> None:
    """Say at once what is being prepared: to plan a large suite and to import torch takes a while."""
    scale = f" at scale {options.scale}" if options.scale else ""
    console.print(
        f"planning {options.suite}{scale}, results in {options.store}", markup=False, highlight=False, soft_wrap=True
    )


def _collection(suite: str) -> "Collection | None":
    """The suite of suites of this name; None for an ordinary suite, and for one that is only known to a store."""
    from harness.suite.collection import read_collection
    from harness.suite.load import find_suite

    try:
        file = find_suite(suite)
    except UserError:
        return None
    return read_collection(file)


def _each(options: SuiteOptions, do: Callable[[SuiteOptions], int], console: "Console") -> int:
    """Do something with a suite, or with each suite of a suite of suites; one that fails does not stop the others.

    Suites in which `--only` matches nothing are left out.

    Returns:
        The highest exit code; at least 1 if one of several suites was refused.

    Raises:
        UserError: if no suite could be treated; the first reason.
    """
    collection = _collection(options.suite)
    if collection is None:
        return do(options)
    codes, refusals = list[int](), list[UserError]()
    for name in collection.suites:
        console.rule(name, align="left")
        try:
            codes.append(do(dataclasses.replace(options, suite=name)))
        except NoMatchError as error:
            refusals.append(error)
            console.print(f"left out: {error}", markup=False, highlight=False, soft_wrap=True)
        except UserError as error:
            refusals.append(error)
            codes.append(1)
            console.print(str(error), style="yellow", markup=False, highlight=False, soft_wrap=True)
    if len(refusals) == len(collection.suites):
        raise refusals[0]
    return max(codes, default=0)


def _run(options: SuiteOptions, no_report: bool, **how: bool) -> int:
    """Run a suite, or each suite of a suite of suites, and write its reports unless they are not wanted.

    Args:
        options: the suite.
        no_report: whether to write no report.
        how: options of `harness.run.start.run`.
    """
    from harness.run.start import run

    console = _console()
    report = None if no_report else _report

    def run_one(one: SuiteOptions) -> int:
        _say_hello(one, console)
        plan, launcher = _planned(one)
        return run(plan, launcher, console, report=report, **how)

    code = _each(options, run_one, console)
    if report:
        _write_document(options, console)
    return code


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
    if not options.launch:
        return suite
    given = {**suite.options, "launch": options.launch}
    return dataclasses.replace(suite, launch=options.launch, launch_at="--launch", options=given)


def _planned(options: SuiteOptions) -> "tuple[Plan, Launcher]":
    """Load a suite's plan and its launcher."""
    from harness.plan.plan import Plan
    from harness.run.profiles import load_profile
    from harness.store.store import Store

    suite = _suite(options)
    launcher = load_profile(suite.launch, suite.launch_at)
    return Plan.on(launcher, suite, Store(options.store)), launcher


def _known(store: Path) -> set[str]:
    """Names of the suites that have been run in a store."""
    from harness.store.manifest import manifests

    return {each.suite for each in manifests(store)}


def _refuse_unknown(suite: str, name: str, verb: str, store: Path, scale: str = "") -> None:
    """Stop if a suite has never been run in a store.

    Raises:
        UserError: suggests to run it, if there is such a suite, else another run of the store, else a look at what there is.
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
            fix = harness_command(verb, other.suite, scale=other.scale if verb == "report" else "", store=store)
    raise UserError(f"{store}: suite '{name}' has not been run in this store{did_you_mean(name, known)}", fix=fix)


def _name(suite: str, store: Path, console: "Console") -> str:
    """The name of a suite that is given by name or by file; of a file, says if it has changed since its last run.

    Raises:
        UserError: for a file whose name is that of another suite in the store.
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
                f"{suite} has changed since it was run ({manifest.created[:16]}), and this is about that run; "
                f"for its present cells: {manifest.again('run', store)}",
                style="yellow",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    return source.name


def _print_wrapped(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with wrapped columns for a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    _console().print(table)


def _report(plan: "Plan", console: "Console") -> None:
    """Write a suite's tables and import its cells into MLflow after a run; neither stops the other.

    Raises:
        UserError: after both were tried.
    """
    from harness.store.manifest import find_manifest

    suite, store = plan.suite, plan.store.root
    options: dict[str, Any] = {
        "edits": suite.options["edits"],
        "backend": suite.options["backend"],
        "data": suite.data,
    }
    obstacle = None
    try:
        _write_tables(store, suite.name, suite.scale, console, TABLE_LINES, **options)
    except UserError as error:
        obstacle = error
    manifest = find_manifest(store, suite.name, suite.scale, **options)
    _import(store, manifest.name, None, console)
    if obstacle:
        raise obstacle


def _import(store: Path, name: str | None, uri: str | None, console: "Console") -> None:
    """Import finished cells into MLflow, and say how many there are and how to look at them."""
    from harness.store.tracking import sync

    result = sync(store, name, uri, _summarise(console))
    console.print(f"MLflow: {_sentence(result)}; view them with:")
    console.print(f"  {result.ui_command}", markup=False, highlight=False, soft_wrap=True)


def _write_tables(store: Path, suite: str, scale: str, console: "Console", lines: int | None, **options: Any) -> None:
    """Write a report, and print as much of it as fits and where all of it is: one line per table or figure."""
    from reports import write_report

    written = write_report(store, suite, scale, console, lines=lines, **options)
    console.print(f"tables and figures in {written[0].parent}:", markup=False, highlight=False, soft_wrap=True)
    for stem, files in itertools.groupby(sorted(written), lambda path: path.stem):
        endings = "  ".join(path.suffix for path in files)
        console.print(f"  {stem:<24} {endings}", markup=False, highlight=False, soft_wrap=True)


def _write_document(options: SuiteOptions, console: "Console") -> None:
    """Combine the reports of a suite of suites into one document, and say where it is; nothing for an ordinary suite."""
    from harness.suite.entries import PAPER
    from reports.document import write_document

    collection = _collection(options.suite)
    if collection is None:
        return
    names = [_name(name, options.store, console) for name in collection.suites]
    written = write_document(
        *(options.store, collection.name, collection.description, names, options.scale or PAPER, console),
        edits=options.edits,
        backend=options.backend,
        data=options.data or os.environ.get("HARNESS_DATA", ""),
    )
    for file in written:
        console.print(f"document of all suites: {file}", markup=False, highlight=False, soft_wrap=True)


def _summarise(console: "Console") -> "Summarise":
    """Compute Score, Freq and times of a suite for MLflow; say so if a report is impossible, which no run needs."""
    from harness.store.mlflow_content import NO_SUMMARY, SuiteSummary
    from reports.summary import summarise

    def tried(store: Path, manifest: "Manifest") -> SuiteSummary:
        try:
            return summarise(store, manifest)
        except UserError as error:
            text = f"MLflow: no Score, Freq or compared times of {manifest.name}: {error.message}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
            return NO_SUMMARY

    return tried


def _sentence(result: "SyncResult") -> str:
    """Summarise the result of an MLflow import."""
    sentence = f"{result.created} runs created, {result.replaced} replaced, {result.skipped} unchanged"
    if result.refused:
        cell, reason = result.refused[0]
        sentence += f", {len(result.refused)} refused by MLflow ({cell}: {reason})"
    return sentence
