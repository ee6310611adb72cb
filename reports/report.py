"""Write and print the tables of a suite from a store."""

from pathlib import Path

from rich.console import Console

from harness.errors import UserError, did_you_mean
from harness.files import explained
from reports.frame import load_suite
from reports.latex import INSTALL_HINT, compile_pdf, render
from reports.tables import BUILDERS
from reports.terminal import print_table


def write_report(store: Path, suite: str, scale: str, console: Console) -> list[Path]:
    """Make every table that the suite asks for, and the table of times, in `reports/<suite>.<scale>/`.

    Each gives `<name>_table.tex`, `.csv` (all numbers with intervals and the cells they come from) and, where pdflatex
    is installed, `.pdf` with its `.log`. The tables are printed to the console with 95 % intervals.

    Returns:
        The files that were written.

    Raises:
        UserError: if the suite was not run, asks for an unknown table, or pdflatex fails (all else is written by then).
    """
    frame = load_suite(store, suite, scale)
    names = list(dict.fromkeys([*frame.manifest["tables"], "time"]))
    for name in names:
        if name not in BUILDERS:
            raise UserError(
                f"suite '{suite}' asks for an unknown table '{name}'{did_you_mean(name, set(BUILDERS))}",
                fix=f"tables are {', '.join(BUILDERS)}",
            )
    folder = store / "reports" / f"{suite}.{scale}"
    written, sources = [], []
    for name in names:
        tables, numbers = BUILDERS[name](frame)
        source = f"{name} table of suite {suite} at {scale} scale, from {frame.cells['cell'].nunique()} cells"
        tex, csv = folder / f"{name}_table.tex", folder / f"{name}_table.csv"
        _write(tex, render(tables, source))
        _write(csv, numbers.to_csv(index=False))
        written += [tex, csv]
        sources.append(tex)
        for table in tables:
            print_table(table, console)
    compiled = [pdf for tex in sources if (pdf := compile_pdf(tex))]
    if not compiled:
        console.print(f"pdflatex is not installed, so no PDF was made (for one: {INSTALL_HINT})", style="yellow")
    return written + compiled


def _write(path: Path, text: str) -> None:
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(text)
        partial.replace(path)
