"""Commands that show one cell: explain and answers."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from harness.cli_shared import CellArgument, StoreOption, new_console, positive_int
from harness.commands import harness_command

app = typer.Typer()


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

    folder = examine.find_cell(Store(store), cell)
    if as_json:
        print(json.dumps(examine.read_parts(folder), indent=1, ensure_ascii=False))
        return 0
    console = new_console()
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
        typer.Option(
            "--wrong", help="Only wrong answers: other than the target or, for locality, than the unedited model's."
        ),
    ] = False,
    axis: Annotated[str, typer.Option(metavar="AXIS", help="Only this axis, for example generality.")] = "",
    record: Annotated[str, typer.Option(metavar="ID", help="Only this record.")] = "",
    protocol: Annotated[str, typer.Option(metavar="NAME", help="Only this protocol, for example generation.")] = "",
    limit: Annotated[int, typer.Option(parser=positive_int, metavar="N", help="Maximum number of answers.")] = 20,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON with all columns; no limit unless given.")
    ] = False,
    store: StoreOption = Path("results"),
) -> int:
    """Show prompts, targets, and what the unedited and the edited model answer, with scores and verdicts."""
    from harness import examine
    from harness.store.store import Store

    kept = Store(store)
    folder = examine.find_cell(kept, cell)
    rows = examine.answers(kept, folder, examine.Wanted(wrong, axis, record, protocol))
    if as_json:
        print(json.dumps(examine.as_records(rows), indent=1, ensure_ascii=False))
        return 0
    console = new_console()
    shown = examine.plain_rows(rows[:limit])
    if console.is_terminal:
        _print_wrapped(examine.headings(rows), shown)
    else:
        for row in (examine.headings(rows), *shown):
            print("\t".join(row))
    said = [f"{len(shown)} of {len(rows)} answers"]
    if len(rows) > limit:
        said.append(f"all: --limit {len(rows)}")
    if len(rows) and rows["unedited"].isna().all():
        said.append("no cell of the unedited model (method none) with the same model and records in this store")
    print("; ".join(said), file=sys.stderr)
    return 0


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
    new_console().print(table)
