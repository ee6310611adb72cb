"""Table 4 of the OnceEdit paper: editing time per method and model, in seconds and as a multiple of OnceEdit's."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.registry import register_table
from reports.common import PHASES, absent_sections, commits_shown, empty_rows, gap_remarks, suite_shown
from reports.layout import Column, Section, Table, TableEntry, TableRow

if TYPE_CHECKING:
    import pandas as pd

    from reports.frame import SuiteFrame

REFERENCE_METHOD = "onceedit"
"""The method whose editing time is 1, as in the paper."""

UNCITABLE_NOTE = "*"


@dataclass(frozen=True, slots=True)
class Timing:
    """Editing time in one row; NaN where nothing was measured.

    Attributes:
        edit_s: seconds, averaged over seeds; a shared edit run counts in full.
        device_class: device class of all cells, empty if they differ.
        is_citable: whether no cell was interrupted or otherwise disturbed.
    """

    edit_s: float
    device_class: str
    is_citable: bool

    def times(self, reference: "Timing") -> float:
        """This time as a multiple of the reference's; NaN unless both were measured on the same device class."""
        if not self.device_class or self.device_class != reference.device_class or reference.edit_s == 0:
            return math.nan
        return self.edit_s / reference.edit_s


NOTHING = Timing(math.nan, "", is_citable=True)


@register_table("time")
def time(frame: "SuiteFrame") -> tuple[list[Table], "pd.DataFrame"]:
    """Editing time of all methods, relative to OnceEdit (Table 4 of the OnceEdit paper); the CSV has all phases."""
    models = frame.models()
    columns = tuple(
        Column(title, group=group, is_ranked=False)
        for group in (*models.values(), "Total")
        for title in ("seconds", "× OnceEdit")
    )
    cells = frame.cells.drop_duplicates("cell")
    sections = tuple(
        _section(frame, str(section), same, len(columns)) for section, same in cells.groupby("section", sort=False)
    )
    entries = [entry for section in sections for row in section.rows for entry in row.entries]
    notes = [f"{UNCITABLE_NOTE} not citable: the measurement was interrupted or the device was shared"] * any(
        entry.note for entry in entries
    )
    if REFERENCE_METHOD not in set(cells["method"]):
        notes.append("× OnceEdit: no cell of OnceEdit is finished.")
    table = Table(
        "time",
        "Editing time",
        _caption(frame, cells),
        columns,
        sections,
        (*notes, *absent_sections(frame)),
    )
    return [table], _numbers(cells)


def timing(cells: "pd.DataFrame") -> Timing:
    """Editing time over the cells of a row: each distinct edit run counts once, and seeds are averaged."""
    if cells.empty:
        return NOTHING
    by_seed = cells.groupby("seed").apply(lambda same: same.groupby("edit_actions")["edit_s"].max().sum())
    classes = set(cells["device_class"])
    return Timing(float(by_seed.mean()), classes.pop() if len(classes) == 1 else "", bool(cells["citable"].all()))


def _section(frame: "SuiteFrame", section: str, cells: "pd.DataFrame", width: int) -> Section:
    title = str(cells.iloc[0]["section_title"])
    missing = [row for row in empty_rows(frame, section, set(cells["row"]), width) if not row.is_reference]
    return Section(title, (*_rows(cells, frame.models()), *missing), tuple(gap_remarks(frame, section, title)))


def _rows(cells: "pd.DataFrame", models: Mapping[str, str]) -> Iterator[TableRow]:
    """Methods that edit, under the first prompt template with a finished cell on each model."""
    measured = {
        str(row): (same.iloc[0]["title"], same.iloc[0]["method"], _timings(same, models))
        for row, same in cells.groupby("row", sort=False)
        if not same.iloc[0]["is_reference"]
    }
    unknown = dict.fromkeys((*models, "total"), NOTHING)
    reference = next((timings for _, method, timings in measured.values() if method == REFERENCE_METHOD), unknown)
    for title, _, timings in measured.values():
        entries: list[TableEntry] = []
        for place, taken in timings.items():
            note = "" if taken.is_citable else UNCITABLE_NOTE
            entries += [TableEntry(taken.edit_s, note=note), TableEntry(taken.times(reference[place]), note=note)]
        yield TableRow(title, tuple(entries))


def _timings(cells: "pd.DataFrame", models: Mapping[str, str]) -> dict[str, Timing]:
    import pandas as pd

    by_model = {model: cells[cells["model"] == model] for model in models}
    chosen = {
        model: same[same["template"] == same.iloc[0]["template"]] if len(same) else same
        for model, same in by_model.items()
    }
    complete = all(len(same) for same in chosen.values())
    total = timing(pd.concat(list(chosen.values()))) if complete else NOTHING
    return {**{model: timing(same) for model, same in chosen.items()}, "total": total}


def _caption(frame: "SuiteFrame", cells: "pd.DataFrame") -> str:
    edits = "; ".join(
        f"{row['section_title']}: {row['edits']} edits" for row in cells.drop_duplicates("section").to_dict("records")
    )
    return (
        f"{suite_shown(frame)}. Seconds to apply all edits, without setup, attaching and model loading. "
        "Multiples are given only for times measured on the same class of device. "
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
