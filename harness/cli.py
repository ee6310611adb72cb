"""Command-line interface: all commands, each kind in a module `cli_*.py`; only these modules know every package."""

import contextlib
import importlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from harness import (
    cli_cells,
    cli_data,
    cli_judge,
    cli_listings,
    cli_live,
    cli_models,
    cli_results,
    cli_suites,
    registry,
)
from harness.cli_shared import PluginOption
from harness.errors import InsufficientMemoryError, UserError
from harness.files import is_full, not_writable
from harness.plain_text import degrade


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
        except (UserError, InsufficientMemoryError) as error:
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


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: harness run main_table --scale mini --only method=none,ft-l,onceedit",
)
for commands in (
    cli_suites,  # run, plan, status, retry, cancel, tune, logs
    cli_results,  # sync, report, results, export-results
    cli_judge,  # judge
    cli_cells,  # explain, answers
    cli_live,  # export, ask, chat, serve
    cli_listings,  # list, schema, doctor
):
    app.add_typer(commands.app)
app.add_typer(cli_data.app, name="data")
app.add_typer(cli_models.app, name="models")


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
