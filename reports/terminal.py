"""Tables in the terminal: one per section, a model's columns in one block, readable at 100 to 120 characters."""

import contextlib
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from reports.layout import Column, Mark, Section, Table, TableEntry, TableRow

HEADING_LINES = 6
"""Title, two lines of column headings, rules and blank lines around a section."""

_STYLES = {Mark.BEST: "bold green", Mark.SECOND: "underline", Mark.NONE: ""}


def print_table(table: Table, console: Console) -> None:
    """Print a table section by section, followed by its notes.

    In a terminal that is too narrow, intervals (`±.02`) are left out of the columns that have a group heading, and groups that
    still do not fit are printed below the others. Output that does not go to a terminal (a log file) is as wide as the table
    needs.
    """
    for section in table.sections:
        console.print(Text(f"{table.title}: {section.title}", style="bold"), soft_wrap=True)  # rich would wrap it
        for drawn in _parts(table, section, console):
            with _at_least(console, _width(drawn, console)):
                console.print(drawn)
        for remark in section.remarks:
            console.print(Text(f"  {remark}", style="dim"), soft_wrap=True)
    for note in table.notes:
        console.print(Text(f"  {note}", style="dim"), soft_wrap=True)


def as_text(tables: Sequence[Table], width: int = 120) -> str:
    """The same as plain text, as wide as the tables need."""
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    with console.capture() as captured:
        for table in tables:
            print_table(table, console)
    return captured.get()


def print_beginning(tables: Sequence[Table], console: Console, lines: int) -> str:
    """Print as many whole tables as fit in a number of lines; of a first table that does not fit, its first rows.

    Returns:
        What was left out, for a sentence; empty if nothing was.
    """
    titles: list[str] = []
    for table in tables:
        height = as_text([table]).count("\n")
        if not titles and height <= lines:
            print_table(table, console)
            lines -= height
        elif table is tables[0]:
            section = table.sections[0]
            rows = section.rows[: max(1, lines - HEADING_LINES - len(table.notes))]
            print_table(replace(table, sections=(replace(section, rows=rows, remarks=()),)), console)
            titles.append(f"all {sum(len(each.rows) for each in table.sections)} rows of {table.title}")
        else:
            titles.append(table.title)
    return "; ".join(titles)


@contextlib.contextmanager
def _at_least(console: Console, width: int) -> Iterator[None]:
    """Widen a console that is not a terminal."""
    before = console.width
    if not console.is_terminal:
        console.width = max(width, before)
    try:
        yield
    finally:
        console.width = before


def _parts(table: Table, section: Section, console: Console) -> list[RichTable]:
    """A section as one table where the console is wide enough, otherwise as many groups of columns at a time as fit."""
    blocks = list(_blocks(table.columns))
    drawn = _draw(table, section, blocks, with_intervals=True)
    if not console.is_terminal or _width(drawn, console) <= console.width:
        return [drawn]
    parts = []
    while blocks:
        for count in range(len(blocks), 0, -1):
            drawn = _draw(table, section, blocks[:count], with_intervals=False)
            if _width(drawn, console) <= console.width:
                break
        parts.append(drawn)
        blocks = blocks[count:]
    return parts


def _draw(
    table: Table, section: Section, blocks: Sequence[tuple[str, list[int]]], *, with_intervals: bool
) -> RichTable:
    drawn = RichTable(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    drawn.add_column("", no_wrap=True)
    widths = [
        max(
            [
                len(column.title),
                *(len(_plain(row.entries[index], with_intervals or not column.group)) for row in section.rows),
            ]
        )
        for index, column in enumerate(table.columns)
    ]
    for group, indices in blocks:
        titles = " ".join(table.columns[index].title.ljust(widths[index]) for index in indices)
        drawn.add_column(Text(f"{group}\n{titles}" if group else f"\n{titles}"), no_wrap=True)
    for row in section.rows:
        style = "dim italic" if row.is_reference else ""
        cells = [
            Text(" ").join(_entries(row, indices, widths, with_intervals or not group)) for group, indices in blocks
        ]
        drawn.add_row(Text(row.title), *cells, style=style)
    return drawn


def _blocks(columns: Sequence[Column]) -> Iterator[tuple[str, list[int]]]:
    """Indices of the columns under each group heading; a column without a group is a block of its own."""
    numbered = enumerate(columns)
    for (group, _), members in itertools.groupby(numbered, key=lambda item: (item[1].group, item[1].group or item[0])):
        yield group, [index for index, _ in members]


def _entries(row: TableRow, indices: Sequence[int], widths: Sequence[int], with_intervals: bool) -> Iterator[Text]:
    for index in indices:
        entry = row.entries[index]
        text = Text(entry.text, style=_STYLES[entry.mark])
        text.append(entry.note, style="not bold not underline")
        text.append(_interval(entry, with_intervals), style="dim not bold not underline")
        text.append(" " * (widths[index] - len(text)), style="not underline")
        yield text


def _plain(entry: TableEntry, with_intervals: bool) -> str:
    return entry.text + entry.note + _interval(entry, with_intervals)


def _interval(entry: TableEntry, with_intervals: bool) -> str:
    return f"±{entry.half_width_text}" if with_intervals and entry.half_width_text else ""


def _width(drawn: RichTable, console: Console) -> int:
    """Characters per line that the table needs without wrapping."""
    return drawn.__rich_measure__(console, console.options.update(width=1000)).maximum
