"""Table 4 of the OnceEdit paper: seconds of editing per method and model, and as a multiple of OnceEdit's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from reports.frame import PHASES, SuiteFrame
from reports.layout import Column, Entry, Row, Section, Table
from reports.tables.gaps import absent_sections, empty_rows, gap_remarks

REFERENCE_METHOD = "onceedit"
"""The method whose editing time is 1, as in the paper."""

UNCITABLE_NOTE = "*"


@dataclass(frozen=True, slots=True)
class Timing:
    """Editing time of one line; NaN where nothing was measured.

    Attributes:
        edit_s: seconds, mean over seeds; a shared act of editing is counted in full.
        device_class: of all its cells, empty if they differ.
        is_citable: no cell was interrupted or otherwise disturbed.
    """

    edit_s: float
    device_class: str
    is_citable: bool

    def times(self, reference: "Timing") -> float:
        """Multiple of the reference's seconds; NaN unless both were measured on one class of device."""
        if not self.device_class or self.device_class != reference.device_class or reference.edit_s == 0:
            return np.nan
        return self.edit_s / reference.edit_s


NOTHING = Timing(np.nan, "", is_citable=True)


def time_tables(frame: SuiteFrame) -> tuple[list[Table], pd.DataFrame]:
    """The table of editing times, and the seconds of all phases of every cell."""
    models = frame.models()
    columns = tuple(
        Column(title, group=group, is_ranked=False)
        for group in (*models.values(), "Total")
        for title in ("seconds", "× OnceEdit")
    )
    cells = frame.cells.drop_duplicates("cell")
    sections = tuple(
        Section(
            str(same.iloc[0]["section_title"]),
            (
                *_rows(same, models),
                *(
                    row
                    for row in empty_rows(frame, str(section), set(same["row"]), len(columns))
                    if not row.is_reference
                ),
            ),
            tuple(gap_remarks(frame, str(section), same.iloc[0]["section_title"])),
        )
        for section, same in cells.groupby("section", sort=False)
    )
    entries = [entry for section in sections for row in section.rows for entry in row.entries]
    notes = [f"{UNCITABLE_NOTE} not citable: the measurement was interrupted or shared its device"] * any(
        entry.note for entry in entries
    )
    if REFERENCE_METHOD not in set(cells["method"]):
        notes.append("× OnceEdit: no cell of OnceEdit is finished.")
    table = Table(
        "time",
        "Time of editing",
        _caption(frame, cells),
        columns,
        sections,
        (*notes, *absent_sections(frame)),
    )
    return [table], _numbers(cells)


def timing(cells: pd.DataFrame) -> Timing:
    """Editing time of a line's cells: each distinct act of editing counts once, seeds are averaged."""
    if cells.empty:
        return NOTHING
    by_seed = cells.groupby("seed").apply(lambda same: same.groupby("edit_actions")["edit_s"].max().sum())
    classes = set(cells["device_class"])
    return Timing(float(by_seed.mean()), classes.pop() if len(classes) == 1 else "", bool(cells["citable"].all()))


def _rows(cells: pd.DataFrame, models: Mapping[str, str]) -> Iterator[Row]:
    """Methods that edit, with the first prompt template that is finished on each model."""
    measured = {
        str(row): (same.iloc[0]["title"], same.iloc[0]["method"], _timings(same, models))
        for row, same in cells.groupby("row", sort=False)
        if not same.iloc[0]["is_reference"]
    }
    unknown = dict.fromkeys((*models, "total"), NOTHING)
    reference = next((timings for _, method, timings in measured.values() if method == REFERENCE_METHOD), unknown)
    for title, _, timings in measured.values():
        entries: list[Entry] = []
        for place, taken in timings.items():
            note = "" if taken.is_citable else UNCITABLE_NOTE
            entries += [Entry(taken.edit_s, note=note), Entry(taken.times(reference[place]), note=note)]
        yield Row(title, tuple(entries))


def _timings(cells: pd.DataFrame, models: Mapping[str, str]) -> dict[str, Timing]:
    by_model = {model: cells[cells["model"] == model] for model in models}
    chosen = {
        model: same[same["template"] == same.iloc[0]["template"]] if len(same) else same
        for model, same in by_model.items()
    }
    complete = all(len(same) for same in chosen.values())
    total = timing(pd.concat(list(chosen.values()))) if complete else NOTHING
    return {**{model: timing(same) for model, same in chosen.items()}, "total": total}


def _caption(frame: SuiteFrame, cells: pd.DataFrame) -> str:
    edits = "; ".join(
        f"{row['section_title']}: {row['edits']} edits" for row in cells.drop_duplicates("section").to_dict("records")
    )
    return (
        f"Suite {frame.manifest['suite']} at {frame.manifest['scale']} scale. Seconds of the edit phase for all edits, "
        "setup, attaching and loading of models excluded; multiples only within one class of device. "
        "Total: all models, an act of editing that models share counted once. "
        f"{edits}. Device: {'; '.join(dict.fromkeys(cells['device_class']))}. Code: {', '.join(frame.commits())}."
    )


def _numbers(cells: pd.DataFrame) -> pd.DataFrame:
    names = {"section_title": "data", "title": "method", "model_title": "model", "cell": "cells"}
    phases = [f"{phase}_s" for phase in PHASES]
    columns = ["section_title", "title", "model_title", "template", "seed", *phases, "device_class", "citable"]
    numbers = cells[[*columns, "cell"]].rename(columns=names)
    numbers["edit_actions"] = [" ".join(sorted(actions)) for actions in cells["edit_actions"]]
    return numbers
