"""Table 4 of the OnceEdit paper: editing time per method and model, of the edits alone and from scratch."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from harness.registry import register_table
from reports.common import (
    PHASES,
    UNCITABLE_NOTE,
    absent_sections,
    commits_shown,
    doubts_shown,
    empty_rows,
    few,
    gap_remarks,
    marks_of,
    suite_shown,
)
from reports.layout import DASH, Column, Section, Table, TableEntry, TableRow
from reports.published import TITLE as PAPER
from reports.published import TOTAL, PaperCosts

if TYPE_CHECKING:
    import pandas as pd

    from reports.costs import Cost
    from reports.frame import SuiteFrame

PAPER_NOTE = "†"
ALONE, SCRATCH = "edit_time_vs_onceedit", "time_from_scratch_vs_onceedit"
"""Published costs that this table measures."""

TITLES = ("edit s", "edit ×", "all s", "all ×")
"""Seconds and multiples of the edits alone, and the same from scratch."""

WHOLE_FROM_S = 100
"""From here on, seconds are shown without decimals."""

LEGEND = (
    "edit: the edits alone. all: from scratch, that is what the method trains or computes before, the edits, and attaching. "
    "×: as a multiple of OnceEdit's."
)


@register_table("time")
def time(frame: "SuiteFrame") -> tuple[list[Table], "pd.DataFrame"]:
    """Editing time of all methods, relative to OnceEdit (Table 4 of the OnceEdit paper); the CSV has all phases."""
    from reports.costs import REFERENCE, reference_row

    paper = PaperCosts.of(frame)
    columns = tuple(
        Column(title, group, is_ranked=False)
        for place, group in {**frame.models(), TOTAL: "Total"}.items()
        for title in (*TITLES, *[PAPER] * _has_paper(paper, place))
    )
    cells = frame.cells.drop_duplicates("cell")
    sections = tuple(
        _section(frame, paper, str(section), same, len(columns))
        for section, same in cells.groupby("section", sort=False)
    )
    notes = [LEGEND, *doubts_shown(cells, sections)]
    if PAPER_NOTE in marks_of(sections):
        notes.append(
            f"{PAPER_NOTE} with what the method trains or computes before: compare with 'all ×', other rows with 'edit ×'"
        )
    once = cells[cells["method"] == REFERENCE]
    if once.empty:
        notes.append("×: no cell of OnceEdit is finished.")
    elif once["row"].nunique() > 1:
        first = once.loc[once["row"] == reference_row(frame), "title"].iloc[0]
        notes.append(f"×: of several rows of OnceEdit, the first counts, {first}.")
    table = Table(
        "time",
        "Editing time",
        _caption(frame, cells),
        columns,
        sections,
        (*notes, *paper.notes(columns, [ALONE, SCRATCH]), *absent_sections(frame)),
    )
    return [table], _numbers(cells)


def _section(frame: "SuiteFrame", paper: PaperCosts, section: str, cells: "pd.DataFrame", width: int) -> Section:
    from reports.costs import reference_row

    title = str(cells.iloc[0]["section_title"])
    edited = cells[~cells["is_reference"]].drop_duplicates("row")
    found = {str(row): costs(frame, section, str(row)) for row in edited["row"]}
    titles = dict(zip(edited["row"], edited["title"], strict=True))
    reference = found.get(reference_row(frame), {})
    rows = [TableRow(titles[row], tuple(_entries(paper, row, by_place, reference))) for row, by_place in found.items()]
    missing = [row for row in empty_rows(frame, section, set(cells["row"]), width) if not row.is_reference]
    compared = {titles[row]: by_place for row, by_place in found.items()}
    places = {**frame.models(), TOTAL: "Total"}
    remarks = (*_incomparable(title, compared, reference, places), *gap_remarks(frame, section, title))
    return Section(title, (*rows, *missing), tuple(remarks))


def _entries(
    paper: PaperCosts, row: str, by_place: "Mapping[str, Cost]", reference: "Mapping[str, Cost]"
) -> Iterator[TableEntry]:
    """Costs of a method under the prompt template that the first table of quality shows."""
    from reports.costs import EDITS, FROM_SCRATCH, NOTHING, multiple, shown_multiple

    for place, cost in by_place.items():
        doubt = "" if cost.is_citable else UNCITABLE_NOTE
        for basis in (EDITS, FROM_SCRATCH):
            value = multiple(cost, reference.get(place, NOTHING), basis)
            seconds = cost.seconds_of(basis)
            yield TableEntry(seconds, digits=2 if seconds < WHOLE_FROM_S else 0, note=doubt)
            yield TableEntry(value, note=doubt, shown=shown_multiple(value))
        if _has_paper(paper, place):
            label = row.partition("/")[0]
            alone, scratch = (paper.entry(label, place, quantity) for quantity in (ALONE, SCRATCH))
            yield alone if math.isnan(scratch.value) else replace(scratch, note=PAPER_NOTE)


def _has_paper(paper: PaperCosts, place: str) -> bool:
    return any(paper.covers([place], quantity) for quantity in (ALONE, SCRATCH))


def _incomparable(
    section: str,
    found: "Mapping[str, Mapping[str, Cost]]",
    reference: "Mapping[str, Cost]",
    titles: Mapping[str, str],
) -> Iterator[str]:
    """Why multiples are missing although both times are there, a sentence for all rows with the same reason in the same places.

    Args:
        section: title of the section.
        found: costs by title of the row and by place.
        reference: OnceEdit's by place.
        titles: of the places.
    """
    from reports.costs import EDITS, FROM_SCRATCH

    bases = {"'edit ×'": EDITS, "'all ×'": FROM_SCRATCH}
    rows: dict[tuple[str, ...], list[str]] = {}
    for row, by_place in found.items():
        reasons: dict[tuple[str, ...], list[str]] = {}
        for place, theirs in reference.items():
            both = (by_place[place], theirs)
            missing = [
                name
                for name, basis in bases.items()
                if all(cost.models for cost in both)
                and len(frozenset().union(*(cost.measured_on(basis) for cost in both))) > 1
            ]
            if missing:
                classes = (" and ".join(sorted(cost.measured_on(FROM_SCRATCH))) for cost in both)
                reasons.setdefault((" or ".join(missing), *classes), []).append(titles[place])
        for reason, places in reasons.items():
            where = "" if len(places) == len(by_place) else f", {few(places, 'places')}"
            rows.setdefault((where, *reason), []).append(row)
    for (where, columns, on, once_on), names in rows.items():
        yield (
            f"{DASH} {section}{where}: {few(names, 'rows')}: no {columns} between different classes of device "
            f"(timed on {on}; OnceEdit on {once_on})."
        )


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
    devices = frozenset(cells["device_class"]).union(
        *(classes for phase in PHASES for classes in cells[f"{phase}_classes"])
    )
    return (
        f"{suite_shown(frame)}. Seconds without loading models. "
        "Multiples are given only for times measured on the same class of device, and as > 100 from there on. "
        "Total: over all models, where an edit run that serves several models counts once and attaching counts for each. "
        f"{edits}. Device: {'; '.join(sorted(devices))}. {commits_shown(frame)}"
    )


def _numbers(cells: "pd.DataFrame") -> "pd.DataFrame":
    names = {"section_title": "data", "title": "method", "model_title": "model", "cell": "cells"}
    phases = [f"{phase}_s" for phase in PHASES]
    columns = [
        "section_title",
        "title",
        "model_title",
        "template",
        "seed",
        *phases,
        "device_class",
        "shared_by",
        "citable",
    ]
    numbers = cells[[*columns, "cell"]].rename(columns=names)
    for phase in PHASES:
        numbers[f"{phase}_device_class"] = ["; ".join(sorted(classes)) for classes in cells[f"{phase}_classes"]]
    numbers["edit_actions"] = [" ".join(sorted(actions)) for actions in cells["edit_actions"]]
    return numbers
