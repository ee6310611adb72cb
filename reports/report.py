"""Write and print the tables and figures of a suite from a store."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from harness import registry
from harness.files import write_bytes
from harness.store.manifest import Options
from harness.store.store import Store
from harness.store.verdicts import has_verdicts
from reports.common import described

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

    from reports.layout import Table

ALWAYS = ("time",)
"""Tables that every report contains."""

IF_JUDGED = "judge"
"""The table of reports in which a cell has been judged."""

FIGURE_FILES: dict[str, dict[str, Any]] = {
    "pdf": {"metadata": {"CreationDate": None}},  # the same bytes every time
    "png": {"dpi": 300},
}
"""Files of a figure, and how each is saved."""


def write_report(
    store: Path, suite: str, scale: str, console: "Console", *, lines: int | None = None, **options: Unpack[Options]
) -> list[Path]:
    """Write every table and figure that a suite asks for, and the time table, to `reports/<manifest>/`; verdicts if there are any.

    A table gives `<name>_table.txt` (as in a terminal), `.tex`, `.md`, `.csv` (all numbers with their intervals and the cells
    that they come from) and, where pdflatex is installed, `.pdf` with its log. A figure gives `<name>_figure.pdf` and `.png`.
    `report.html` has all of it in one file, with the settings and answers of each cell.

    Args:
        store: folder of the store.
        suite, scale: of the run.
        console: for the tables.
        lines: print as much of the suite's first table as fits in this many lines; None to print all tables.
        options: of the run, as on the command line.

    Returns:
        The files that were written.

    Raises:
        UserError: if the suite was not run or asks for an unknown table or figure, before anything is written, or if
            the folder cannot be written. A failure of pdflatex costs the PDF, and one line says why.
    """
    from reports import html, markdown  # pandas, which is not needed to know the names of tables
    from reports.frame import load_suite
    from reports.latex import compile_all, render
    from reports.terminal import as_text, print_beginning, print_table

    frame = load_suite(store, suite, scale, **options)
    judged = [IF_JUDGED] * has_verdicts(Store(store), frame.manifest.cells)
    tables = {name: registry.tables.get(name) for name in (*frame.manifest.tables, *judged, *ALWAYS)}
    figures = {name: registry.figures.get(name) for name in frame.manifest.figures}
    folder = store / "reports" / frame.manifest.name
    written: list[Path] = []

    def write(name: str, content: bytes) -> Path:
        written.append(folder / name)
        write_bytes(written[-1], content)
        return written[-1]

    sources, all_tables, drawings = list[Path](), list["Table"](), list[html.Drawing]()
    for name, build in tables.items():
        built, numbers = build(frame)
        all_tables += built
        source = f"{name} table of suite {suite} at {scale} scale, from {frame.cells['cell'].nunique()} cells"
        txt = write(f"{name}_table.txt", as_text(built).encode())
        sources.append(write(f"{name}_table.tex", render(built, source).encode()))
        write(f"{name}_table.md", markdown.render(built).encode())
        write(f"{name}_table.csv", numbers.to_csv(index=False).encode())
        if lines is None:
            for table in built:
                print_table(table, console)
        elif len(sources) == 1 and (left := print_beginning(built, console, lines)):
            console.print(f"{left}: see {txt}", markup=False, highlight=False, soft_wrap=True)
    for name, draw in figures.items():
        figure = draw(frame)
        for kind, how in FIGURE_FILES.items():
            write(f"{name}_figure.{kind}", _saved(figure, kind, **how))
        drawings.append(html.Drawing(described(draw), _saved(figure, "svg", metadata={"Date": None})))
    write("report.html", html.render(frame, all_tables, drawings).encode())
    if gaps := frame.gaps():
        console.print(gaps, style="yellow", markup=False, highlight=False, soft_wrap=True)
    compiled, failure = compile_all(sources)
    if failure:
        console.print(failure, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return written + compiled


def _saved(figure: "Figure", kind: str, **how: Any) -> bytes:
    """A figure as a file; the same bytes every time."""
    from matplotlib import rc_context

    drawn = io.BytesIO()
    with rc_context({"svg.hashsalt": "harness"}):
        figure.savefig(drawn, format=kind, **how)
    return drawn.getvalue()
