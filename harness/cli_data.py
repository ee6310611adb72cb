"""The commands `harness data …`: list, show, check, convert and download datasets."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import registry
from harness.cli_shared import DataOption, PluginOption, print_table
from harness.commands import harness_command, list_around
from harness.errors import UserError
from harness.inventory import REAL_RECORDS
from harness.plain_text import counted

if TYPE_CHECKING:
    from rich.progress import TaskID

app = typer.Typer(help="List, show, check, convert or download datasets.", no_args_is_help=True)

_FOREIGN = 20
"""Ignored files that `data list` names."""


def _source(data: str | None) -> str:
    """Where the records are: a folder, or `synthetic`.

    Raises:
        UserError: if there is nothing where the environment says that they are.
    """
    from harness.data.sources import SYNTHETIC

    if data and data == os.environ.get("HARNESS_DATA") and not Path(data).exists():
        raise UserError(f"HARNESS_DATA: no such folder: {data}", fix=list_around(Path(data)))
    return data or SYNTHETIC


@app.command("list")
def data_list(
    name: Annotated[str | None, typer.Argument(metavar="DATASET", help="Dataset; default: all.")] = None,
    data: DataOption = None,
    plugin: PluginOption = None,
) -> int:
    """List dataset files with their role and record counts; usable records are valid and have a new prompt."""
    from harness.data.show import contradictions, describe, ignored, left_out

    source = _source(data)
    numbers = ("records", "usable", "test", "dev")
    rows = []
    for file in describe(source, name):
        counts = (f"{count:,}" for count in (file.rows, file.usable, file.test, file.dev))
        rows.append((file.dataset, file.role, *counts, file.format, file.path))
    print_table(("dataset", "used for", *numbers, "format", "file"), rows, numbers)
    for line in contradictions(source, name):
        print(f"if the whole file is edited: {line}")
    for line in left_out(source, name):
        print(line)
    foreign = [] if name else ignored(source)
    for line in foreign[:_FOREIGN]:
        print(f"ignored: {line}")
    if len(foreign) > _FOREIGN:
        print(f"ignored: {counted(len(foreign) - _FOREIGN, 'more file')}")
    if data is None:
        print(f"synthetic records only; {REAL_RECORDS}")
    return 0


@app.command("show")
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

    print(show(name, _source(data), record))
    return 0


@app.command("fetch")
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


@app.command("check")
def data_check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of records in any known format.")],
    plugin: PluginOption = None,
) -> int:
    """Check every record of a file: which can be used, what is wrong with the others, and which questions they have."""
    from harness.data.check import check

    report = check(file)
    found = report.file
    print(f"{file}: {found.format.title}, dataset {found.format.dataset}")
    print(f"{counted(found.rows, 'record')} with {counted(found.edits, 'edit')}; usable: {len(found.records):,}")
    rows = [
        (name, kind or "–", f"{asked:,}", f"{having:,}") for (name, kind), (asked, having) in report.questions.items()
    ]
    if rows:
        print_table(("field", "kind", "questions", "records"), rows, ("questions", "records"))
    for line in (*report.problems, *report.remarks):
        print(line)
    return 1 if report.problems else 0


@app.command("convert")
def data_convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of records in any known format.")],
    to: Annotated[Path, typer.Option(metavar="FILE", help="JSON Lines file to write.")],
    plugin: PluginOption = None,
) -> int:
    """Write the usable records of a file as JSON Lines in the harness's own format."""
    from harness.data.check import convert

    found = convert(file, to)
    print(f"{to}: wrote {counted(len(found.records), 'record')}; {file} has {found.rows:,} ({found.format.title})")
    if left_out := found.left_out():
        print(left_out)
    return 0


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
