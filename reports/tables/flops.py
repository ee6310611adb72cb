"""FLOPs of attaching OnceEdit by the paper's formulas, its transfer matrices, and counted FLOPs of every method."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.registry import register_table
from reports.common import absent_sections, commits_shown, gap_remarks, suite_shown
from reports.layout import Column, Section, Table, TableEntry, TableRow, amount
from reports.published import TITLE as PAPER
from reports.published import PaperCosts

if TYPE_CHECKING:
    import pandas as pd

    from reports.frame import SuiteFrame

TERA, GIGA = 1e12, 1e9

FORMULA = {
    "TFLOPs per token": ("formula_per_token", TERA, 3, "tflops_per_token"),
    "TFLOPs of both matrices": ("formula_attach", TERA, 3, "tflops_attach"),
    "in tokens": ("formula_attach_in_tokens", 1.0, 0, "attach_in_tokens"),
    "TFLOPs counted": ("flops_attach", TERA, 3, ""),
}
"""Columns of Table 5 with what is published of them, and what the implementation was counted to spend on attaching."""

SHAPES = {
    "vocabulary": "Tokens",
    "anchors": "Anchors",
    "width": "Width",
    "plugin_vocabulary": "Plug-in tokens",
    "plugin_width": "Plug-in width",
}
"""Diagnostics that describe the transfer matrices, with their titles."""

COUNTED = {"edit": "edit", "per_edit": "per edit", "per_token": "per token"}


@register_table("flops")
def flops(frame: "SuiteFrame") -> tuple[list[Table], "pd.DataFrame"]:
    """FLOPs of attaching OnceEdit (Tables 5 and 9 of the OnceEdit paper), and counted FLOPs of every method."""
    import pandas as pd

    cells = frame.cells.drop_duplicates("cell")
    columns = [name for name in cells if str(name).startswith(("flops_", "formula_"))]
    numbers = cells[["section_title", "title", "model_title", "template", "seed", *columns, "cell"]]
    numbers = numbers.rename(
        columns={"section_title": "data", "title": "method", "model_title": "model", "cell": "cells"}
    )
    tables = [_attaching(frame, cells), _shapes(frame, cells), _counted(frame, cells)]
    return [table for table in tables if any(section.rows for section in table.sections)] or tables[-1:], pd.DataFrame(
        numbers
    )


def _pairs(cells: "pd.DataFrame") -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """One cell per method and model for which the paper's formulas apply, with its title."""
    able = cells[cells["formula_attach"].notna()].drop_duplicates(["row", "model"])
    several = able["row"].nunique() > 1
    for cell in able.to_dict("records"):
        yield f"{cell['model_title']}, {cell['title']}" if several else str(cell["model_title"]), cell


def _attaching(frame: "SuiteFrame", cells: "pd.DataFrame") -> Table:
    rows = [
        (
            title,
            cell,
            {
                heading: amount(float(cell[name]) / unit, digits=digits)
                for heading, (name, unit, digits, _) in FORMULA.items()
            },
        )
        for title, cell in _pairs(cells)
    ]
    columns, section, notes = _with_paper(frame, rows, {title: quantity for title, (*_, quantity) in FORMULA.items()})
    caption = (
        f"{suite_shown(frame)}. One token of the target model (2 per weight outside the embeddings), both relative transfer "
        "matrices by equations 20 to 26 of the OnceEdit paper, the number of tokens that cost as much, and what attaching was "
        f"counted to take here, where the matrices are never built. {commits_shown(frame)}"
    )
    return Table("flops-attach", "FLOPs of attaching OnceEdit", caption, columns, (section,), notes)


def _shapes(frame: "SuiteFrame", cells: "pd.DataFrame") -> Table:
    from harness.store.store import Store

    store, rows = Store(frame.store), []
    for title, cell in _pairs(cells):
        found: Mapping[str, float] = store.cell(cell["cell"]).read("metrics.json").get("diagnostics", {})
        entries = {heading: TableEntry(found.get(name, math.nan), digits=0) for name, heading in SHAPES.items()}
        rows.append((title, cell, entries))
    columns, section, notes = _with_paper(frame, rows, {title: name for name, title in SHAPES.items()})
    caption = (
        f"{suite_shown(frame)}. The transfer matrix of a model has a row per token and a column per anchor. "
        f"{commits_shown(frame)}"
    )
    return Table("flops-transfer", "Transfer matrices of OnceEdit", caption, columns, (section,), notes)


def _with_paper(
    frame: "SuiteFrame",
    rows: Sequence[tuple[str, Mapping[Any, Any], Mapping[str, TableEntry]]],
    quantities: Mapping[str, str],
) -> tuple[tuple[Column, ...], Section, tuple[str, ...]]:
    """Columns, rows and notes of a table about target models, with published numbers next to measured ones.

    Args:
        frame: the suite.
        rows: title, cell and entries by the title of their column.
        quantities: what is published about a column, by its title.
    """
    paper = PaperCosts.of(frame)
    models = {str(cell["model"]) for _, cell, _ in rows}
    shown = {title for title, quantity in quantities.items() if paper.covers(models, quantity)}
    titles = [each for title in quantities for each in (title, *[PAPER] * (title in shown))]
    columns, lines = tuple(Column(title, is_ranked=False) for title in titles), []
    for title, cell, measured in rows:
        entries: list[TableEntry] = []
        for heading, entry in measured.items():
            entries.append(entry)
            if heading in shown:
                label = str(cell["row"]).partition("/")[0]
                entries.append(paper.entry(label, str(cell["model"]), quantities[heading], entry.digits))
        lines.append(TableRow(title, tuple(entries)))
    return columns, Section("Target model", tuple(lines)), tuple(paper.notes(columns, quantities.values()))


def _counted(frame: "SuiteFrame", cells: "pd.DataFrame") -> Table:
    """One row per method, with counted FLOPs on each model."""
    models = frame.models()
    columns = tuple(
        Column(title, group=model, is_ranked=False) for model in models.values() for title in COUNTED.values()
    )
    sections = []
    for section, same in cells.groupby("section", sort=False):
        rows = []
        for _, of_row in same.groupby("row", sort=False):
            by_model = of_row.drop_duplicates("model").set_index("model")
            entries = tuple(
                amount(float(by_model[f"flops_{name}"].get(model, math.nan)) / GIGA)
                for model in models
                for name in COUNTED
            )
            rows.append(TableRow(str(of_row.iloc[0]["title"]), entries, bool(of_row.iloc[0]["is_reference"])))
        title = str(same.iloc[0]["section_title"])
        sections.append(Section(title, tuple(rows), tuple(gap_remarks(frame, str(section), title))))
    caption = (
        f"{suite_shown(frame)}. GFLOPs counted from the shapes of all matrix operations: all edits of a cell, one edit, and one "
        f"generated token; an edit that models share counts in full for each. A dash: not counted. {commits_shown(frame)}"
    )
    return Table("flops-counted", "Counted FLOPs", caption, columns, tuple(sections), tuple(absent_sections(frame)))
