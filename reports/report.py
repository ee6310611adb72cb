"""Write and print the tables and figures of a suite from a store."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from harness import registry
from harness.files import write_bytes
from harness.store.manifest import Options

if TYPE_CHECKING:
    from rich.console import Console

ALWAYS = ("time",)
"""Tables that every report contains."""

FIGURE_FILES: dict[str, dict[str, Any]] = {
    "pdf": {"metadata": {"CreationDate": None}},  # the same bytes every time
    "png": {"dpi": 300},
}
"""Files of a figure, and how each is saved."""


def write_report(
    store: Path, suite: str, scale: str, console: "Console", *, lines: int | None = None, **options: Unpack[Options]
) -> list[Path]:
    """Write every table and figure that a suite asks for, and the time table, to `reports/<manifest>/`.

    A table gives `<name>_table.txt` (as in a terminal), `<name>_table.tex`, `<name>_table.csv` (all numbers with their
    intervals and the cells that they come from) and, where pdflatex is installed, `<name>_table.pdf` with its log. A figure
    gives `<name>_figure.pdf` and `<name>_figure.png`.

    Args:
        store: folder of the store.
        suite, scale: of the run.
        console: for the tables.
        lines: print of the suite's first table what fits in so many lines; None to print all tables.
        options: of the run, as on the command line.

    Returns:
        The files that were written.

    Raises:
        UserError: if the suite was not run or asks for an unknown table or figure, before anything is written, or if
            the folder cannot be written. A failure of pdflatex costs the PDF, and one line says why.
    """
    from reports.frame import load_suite  # pandas, which is not needed to know the names of tables
    from reports.latex import compile_all, render
    from reports.terminal import as_text, print_beginning, print_table

    frame = load_suite(store, suite, scale, **options)
    tables = {name: registry.tables.get(name) for name in (*frame.manifest.tables, *ALWAYS)}
    figures = {name: registry.figures.get(name) for name in frame.manifest.figures}
    folder = store / "reports" / frame.manifest.name
    written, sources = [], []
    for name, build in tables.items():
        built, numbers = build(frame)
        source = f"{name} table of suite {suite} at {scale} scale, from {frame.cells['cell'].nunique()} cells"
        txt, tex, csv = (folder / f"{name}_table.{ending}" for ending in ("txt", "tex", "csv"))
        write_bytes(txt, as_text(built).encode())
        write_bytes(tex, render(built, source).encode())
        write_bytes(csv, numbers.to_csv(index=False).encode())
        written += [txt, tex, csv]
        sources.append(tex)
        if lines is None:
            for table in built:
                print_table(table, console)
        elif len(sources) == 1 and (left := print_beginning(built, console, lines)):
            console.print(f"{left}: see {txt}", markup=False, highlight=False, soft_wrap=True)
    for name, draw in figures.items():
        figure = draw(frame)
        for kind, how in FIGURE_FILES.items():
            written.append(folder / f"{name}_figure.{kind}")
            drawn = io.BytesIO()
            figure.savefig(drawn, format=kind, **how)
            write_bytes(written[-1], drawn.getvalue())
    if gaps := frame.gaps():
        console.print(gaps, style="yellow", markup=False, highlight=False, soft_wrap=True)
    compiled, failure = compile_all(sources)
    if failure:
        console.print(failure, style="yellow", markup=False, highlight=False, soft_wrap=True)
    return written + compiled
