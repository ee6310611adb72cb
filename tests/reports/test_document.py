"""One document of several suites: in order, each below its heading, and nothing larger than a page."""

import io
import shutil

import pytest
from rich.console import Console

from reports.document import write_document
from reports.report import write_report


@pytest.fixture
def written(fake):
    """The document of a suite with a table and a figure, and of one that was never run."""
    fake.write_suite(methods=("none", "onceedit"), data=("zsre",))
    fake.write_manifest(figures=["quality_bars"])
    write_report(fake.root, "main_table", "mini", Console(file=io.StringIO()))
    return write_document(
        fake.root, "all", "A & B", ["cost", "main_table"], "mini", Console(file=io.StringIO(), width=500)
    )


def test_a_suite_that_was_run_has_a_heading_its_tables_and_then_its_figures(written):
    text = written[0].read_text()
    places = [text.index(part) for part in (r"\section{Main table}", "main_table.tex", "quality_bars_figure.pdf")]
    assert places == sorted(places)
    assert r"\title{A \& B}" in text
    assert r"\item Main table, 6 cells" in text
    assert "Cost" not in text


@pytest.mark.latex
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex")
def test_it_compiles_and_every_part_fits_on_a_page(written):
    assert [file.suffix for file in written] == [".tex", ".pdf"]
    log = written[1].with_suffix(".log").read_text(errors="replace")
    assert "vbox" not in log
    assert not [line for line in log.splitlines() if line.startswith("!")]
