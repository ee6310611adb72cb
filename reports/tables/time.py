"""Table 4 of the OnceEdit paper: editing time per method and model, in seconds and as a multiple of OnceEdit's."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from harness.registry import register_table
from reports.common import PHASES, absent_sections, commits_shown, empty_rows, gap_remarks, suite_shown
from reports.layout import Column, Section, Table, TableEntry, TableRow
from reports.published import TITLE as PAPER
from reports.published import TOTAL, PaperCosts

if TYPE_CHECKING:
    import pandas as pd

    from reports.costs import Cost
    from reports.frame import SuiteFrame

UNCITABLE_NOTE = "*"
SETUP_NOTE = "†"
QUANTITY = "edit_time_vs_onceedit"
"""Of the published costs, what this table measures."""


@register_table("time")
def time(frame: "SuiteFrame") -> tuple[list[Table], "pd.DataFrame"]:
    """Editing time of all methods, relative to OnceEdit (Table 4 of the OnceEdit paper); the CSV has all phases."""
    from reports.costs import REFERENCE

    paper = PaperCosts.of(frame)
    columns = tuple(
        Column(title, group, is_ranked=False)
        for place, group in {**frame.models(), TOTAL: "Total"}.items()
        for title in ("seconds", "× OnceEdit", *[PAPER] * paper.covers([place], QUANTITY))
    )
    cells = frame.cells.drop_duplicates("cell")
    sections = tuple(
        _section(frame, paper, str(section), same, len(columns))
        for section, same in cells.groupby("section", sort=False)
    )
    entries = [entry for section in sections for row in section.rows for entry in row.entries]
    notes = [f"{UNCITABLE_NOTE} not citable: the measurement was interrupted or the device was shared"] * any(
        entry.note.endswith(UNCITABLE_NOTE) for entry in entries
    )
    if any(entry.note == SETUP_NOTE for entry in entries):
        notes.append(f"{SETUP_NOTE} with setup, which takes longer than all edits")
    references = cells[cells["method"] == REFERENCE]["title"].unique()
    if not len(references):
        notes.append("× OnceEdit: no cell of OnceEdit is finished.")
    elif len(references) > 1:
        notes.append(f"× OnceEdit: as a multiple of the first of its rows, {references[0]}.")
    table = Table(
        "time",
        "Editing time",
        _caption(frame, cells),
        columns,
        sections,
        (*notes, *paper.notes(columns, [QUANTITY]), *absent_sections(frame)),
    )
    return [table], _numbers(cells)


def _section(frame: "SuiteFrame", paper: PaperCosts, section: str, cells: "pd.DataFrame", width: int) -> Section:
    title = str(cells.iloc[0]["section_title"])
    missing = [row for row in empty_rows(frame, section, set(cells["row"]), width) if not row.is_reference]
    return Section(title, (*_rows(frame, paper, section), *missing), tuple(gap_remarks(frame, section, title)))


def _rows(frame: "SuiteFrame", paper: PaperCosts, section: str) -> Iterator[TableRow]:
    """Methods that edit, under the prompt template that the first table of quality shows."""
    from reports.costs import NOTHING, REFERENCE, shown_multiple

    cells = frame.cells[(frame.cells["section"] == section) & ~frame.cells["is_reference"]]
    measured = {
        str(row): (same.iloc[0]["title"], same.iloc[0]["method"], costs(frame, section, str(row)))
        for row, same in cells.groupby("row", sort=False)
    }
    reference = next((found for _, method, found in measured.values() if method == REFERENCE), {})
    for row, (title, _, found) in measured.items():
        entries: list[TableEntry] = []
        for place, cost in found.items():
            value, shown = shown_multiple(cost, reference.get(place, NOTHING))
            doubt = "" if cost.is_citable else UNCITABLE_NOTE
            setup = SETUP_NOTE if cost.is_setup_dominant and shown else ""
            entries += [TableEntry(cost.edit_s, note=doubt), TableEntry(value, note=setup + doubt, shown=shown)]
            if paper.covers([place], QUANTITY):
                entries.append(paper.entry(row.partition("/")[0], place, QUANTITY))
        yield TableRow(title, tuple(entries))


def costs(frame: "SuiteFrame", section: str, row: str) -> "dict[str, Cost]":
    """The cost of a row on each model, and on all of them as `TOTAL`; nothing where a cell is missing."""
    from reports.costs import NOTHING, cost_of
    from reports.scores import shown_cells

    shown, cells = shown_cells(frame, section), frame.cells.drop_duplicates("cell")
    names = {model: shown.get((row, model), ()) for model in frame.models()}
    by_model = {model: cost_of(cells[cells["cell"].isin(of_model)]) for model, of_model in names.items()}
    together = [name for of_model in names.values() for name in of_model]
    total = cost_of(cells[cells["cell"].isin(together)]) if all(names.values()) else NOTHING
    return {**by_model, TOTAL: total}


def _caption(frame: "SuiteFrame", cells: "pd.DataFrame") -> str:
    edits = "; ".join(
        f"{row['section_title']}: {row['edits']} edits" for row in cells.drop_duplicates("section").to_dict("records")
    )
    return (
        f"{suite_shown(frame)}. Seconds to apply all edits, without setup, attaching and model loading. "
        "Multiples are given only for times measured on the same class of device, and as > 100 from there on. "
        "Total: over all models, where an edit run that serves several models counts once. "
        f"{edits}. Device: {'; '.join(dict.fromkeys(cells['device_class']))}. {commits_shown(frame)}"
    )


def _numbers(cells: "pd.DataFrame") -> "pd.DataFrame":
    names = {"section_title": "data", "title": "method", "model_title": "model", "cell": "cells"}
    phases = [f"{phase}_s" for phase in PHASES]
    columns = ["section_title", "title", "model_title", "template", "seed", *phases, "device_class", "citable"]
    numbers = cells[[*columns, "cell"]].rename(columns=names)
    numbers["edit_actions"] = [" ".join(sorted(actions)) for actions in cells["edit_actions"]]
    return numbers
