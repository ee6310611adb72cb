"""Shared by all commands: options and arguments, handling of suites of suites, and terminal output."""

import dataclasses
import errno
import functools
import inspect
import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from harness import registry
from harness.commands import PLUGINS, nearest_existing, plugin_names
from harness.errors import NoMatchError, UserError
from harness.files import not_writable
from harness.models import catalogue

if TYPE_CHECKING:
    from rich.console import Console

    from harness.store.manifest import Options
    from harness.suite.collection import Collection

Number = TypeVar("Number", int, float)

EVERY_S = {"status": "5", "sync": "30"}
"""Default interval of `--watch` in seconds, by command."""


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


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    return _above_zero(float, text)


def positive_int(text: str) -> int:
    """Parse a whole number above 0."""
    return _above_zero(int, text)


def _above_zero(kind: type[Number], text: str) -> Number:
    try:
        number = kind(text)
    except ValueError:
        number = kind(0)
    if not 0 < number < math.inf:
        what = "a whole number" if kind is int else "a number"
        raise typer.BadParameter(f"expected {what} above 0, found '{text}'")
    return number


def _plug_in(names: list[str] | None) -> list[str] | None:
    """Load plug-ins and add them to the environment, so that worker processes and cluster jobs load them too."""
    if names:
        paths = [str(Path(name).expanduser().resolve()) if name.endswith(".py") else name for name in names]
        os.environ[PLUGINS] = ":".join(dict.fromkeys([*plugin_names(), *paths]))
        try:
            registry.load_plugins(paths)
        except UserError as error:
            if models := [name for name in names if name in catalogue.CATALOGUE]:
                raise UserError(
                    f"--plugin: '{models[0]}' is a model, not a Python module or file",
                    fix=f"OnceEdit's plug-in model is set in a suite: {{name: onceedit, plugin: {models[0]}}}",
                ) from error
            raise
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


StoreOption = Annotated[Path, typer.Option("--store", metavar="DIR", callback=_results_folder, help="Results folder.")]
CellArgument = Annotated[
    str, typer.Argument(metavar="CELL", help="Cell id or folder name, a prefix of either, or the folder's path.")
]
PluginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE_OR_FILE",
        callback=_plug_in,
        help="Python module or file that adds methods, datasets, protocols, tables, figures or launchers. Repeatable.",
    ),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Stop before anything is done if one cell cannot run here.")
]
NoReportOption = Annotated[bool, typer.Option("--no-report", help="Skip tables and MLflow.")]
DetachOption = Annotated[
    bool, typer.Option("--detach", help="On a cluster: return once all jobs are submitted; run again to follow.")
]
_DATA_HELP = "Folder of upstream files (default: HARNESS_DATA; without it, synthetic records at mini scale)."
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", envvar="HARNESS_DATA", help=_DATA_HELP),
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
    data: Annotated[str | None, typer.Option(metavar="DIR", help=_DATA_HELP)] = None
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

    @property
    def as_run(self) -> "RunOptions":
        """How commands that read results name the run that these options make."""
        data = self.data or os.environ.get("HARNESS_DATA")
        return RunOptions(self.suite, self.scale or "paper", data, self.edits, self.backend, self.store)


@dataclasses.dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of every command that reads the results of a suite: which run is meant."""

    suite: Annotated[str, typer.Argument(metavar="SUITE", help="Name or file of a suite.")]
    scale: Annotated[
        str, typer.Option(help="Scale of the run; paper: as written.", autocompletion=lambda: _scale_names())
    ] = "paper"
    data: DataOption = None
    edits: Annotated[int | None, typer.Option(metavar="N", help="The --edits of the run.")] = None
    backend: Annotated[str | None, typer.Option(metavar="NAME", help="The --backend of the run.")] = None
    store: StoreOption = Path("results")
    plugin: PluginOption = None

    @property
    def variant(self) -> "Options":
        """What tells this run from others of the suite at the same scale."""
        return {"data": self.data, "edits": self.edits, "backend": self.backend}


AnyOptions = TypeVar("AnyOptions", bound=SuiteOptions | RunOptions)


def with_options(kind: type[AnyOptions]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorator: add the fields of a class of options to a command, before its own options, and pass them as one object."""

    def decorator(function: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(function)
        def verb(**options: Any) -> int:
            given = {field.name: options.pop(field.name) for field in dataclasses.fields(kind)}
            return function(kind(**given), **options)

        _, *own = inspect.signature(function).parameters.values()
        shared = inspect.signature(kind).parameters.values()
        parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*shared, *own)]
        verb.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        verb.__annotations__ = {each.name: each.annotation for each in parameters}
        return verb

    return decorator


def new_console(width: int = 120, *, stderr: bool = False) -> "Console":
    """Console with the terminal's width; files and pipes get a fixed one, so that lines are not wrapped."""
    from rich.console import Console

    return Console(width=None if Console(stderr=stderr).is_terminal else width, stderr=stderr)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = ()) -> None:
    """Print a table; in a file or a pipe, every row is one line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    new_console(width=2000).print(table)


def collection_of(suite: str) -> "Collection | None":
    """The suite of suites of this name; None for an ordinary suite, and for one that is only known to a store."""
    from harness.suite.collection import read_collection
    from harness.suite.load import find_suite

    try:
        file = find_suite(suite)
    except UserError:
        return None
    return read_collection(file)


def each_suite(options: AnyOptions, do: Callable[[AnyOptions], int], console: "Console") -> int:
    """Do something with a suite, or with each suite of a suite of suites; one that fails does not stop the others.

    Suites in which `--only` matches nothing are left out.

    Returns:
        The highest exit code; at least 1 if one of several suites was refused.

    Raises:
        UserError: if no suite could be treated; the first reason.
    """
    collection = collection_of(options.suite)
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
