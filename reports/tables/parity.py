"""Native methods next to other backends' implementations: scores, weights, predictions, seconds, and a fidelity badge."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from harness.registry import NATIVE, register_table
from reports.common import (
    AVERAGED,
    absent_sections,
    commits_shown,
    gap_remarks,
    in_order,
    limit_remarks,
    protocol_title,
    seeds_shown,
    suite_shown,
)
from reports.layout import Column, Section, Table, TableEntry, TableRow

if TYPE_CHECKING:
    import pandas as pd

    from reports.frame import SuiteFrame
    from reports.parity import BackendComparison


@register_table("parity")
def parity(frame: "SuiteFrame") -> tuple[list[Table], "pd.DataFrame"]:
    """Native implementations compared with other backends': scores, weights, predictions and editing time."""
    import pandas as pd

    from reports.parity import comparisons

    found = list(comparisons(frame))
    tables = []
    for section, cells in frame.cells.groupby("section", sort=False):
        for backend in [name for name in dict.fromkeys(cells["backend"]) if name != NATIVE]:
            in_table = cells[cells["backend"].isin([NATIVE, backend])]
            compared = [one for one in found if one.section == section and one.backend == backend]
            tables.append(_table(frame, backend, in_table, compared))
    return tables or [_nothing(frame)], pd.DataFrame([_numbers(frame, one) for one in found])


def _table(frame: "SuiteFrame", backend: str, cells: "pd.DataFrame", found: "Sequence[BackendComparison]") -> Table:
    """One section and one backend, with a part for each method that both have."""
    protocols = in_order(cells["protocol"].unique())
    columns = tuple(
        Column(axis.title(), protocol_title(name), is_ranked=False) for name in protocols for axis in AVERAGED
    )
    columns += tuple(Column(title, f"native vs. {backend}", is_ranked=False) for title in ("Δw", "Same", "s", "×"))
    compared = {one.method for one in found}
    sections = tuple(
        Section(
            of_method.iloc[0]["method_title"],
            tuple(_rows(of_method, protocols, found)),
            tuple(_remarks(frame, of_method, found)),
        )
        for _, of_method in cells[cells["method"].isin(compared)].groupby("method", sort=False)
    )
    first = cells.iloc[0]
    caption = (
        f"{suite_shown(frame)}, {first['section_title']}, {first['edits']} edits, {seeds_shown(frame)}. "
        f"Device: {'; '.join(dict.fromkeys(cells['device_class']))}. {commits_shown(frame)}"
    )
    title = f"Native implementations and those of {backend} on {first['section_title']}"
    place = (first["section"], first["section_title"])
    gaps = (*gap_remarks(frame, *place), *limit_remarks(frame, *place, *protocols), *absent_sections(frame))
    return Table(f"parity-{backend}-{first['data']}", title, caption, columns, sections, (*_notes(backend), *gaps))


def _nothing(frame: "SuiteFrame") -> Table:
    """The table of a suite without a finished cell of any other backend."""
    cells = frame.cells.drop_duplicates("section")
    gaps = [
        remark
        for section, title in zip(cells["section"], cells["section_title"], strict=True)
        for remark in gap_remarks(frame, section, title)
    ]
    notes = ("There is nothing to compare: no cell of another backend is finished.", *gaps, *absent_sections(frame))
    return Table("parity", "Native implementations and other backends", f"{suite_shown(frame)}.", (), (), notes)


def _notes(backend: str) -> tuple[str, ...]:
    from reports.parity import PREDICTIONS_FROM, WEIGHTS_WITHIN

    return (
        f"Δw: Frobenius norm of the difference between the native weights and those of {backend}, relative to the norm "
        f"of {backend}'s change; dash: the edited weights of one or both were not kept.",
        f"Same: share of probes with the same prediction as {backend}. s: editing time in seconds. "
        f"×: editing time of {backend} divided by that of the native implementation.",
        f"Equivalent: Δw of at most {WEIGHTS_WITHIN:.0e}, or without edited weights, Same of at least "
        f"{PREDICTIONS_FROM:.2f}.",
    )


def _rows(cells: "pd.DataFrame", protocols: Sequence[str], found: "Sequence[BackendComparison]") -> Iterator[TableRow]:
    """A row per model and method entry of the suite: scores and seconds are means over seeds, comparisons the worst."""
    import numpy as np

    by_native = {one.native: one for one in found}
    for (_, _), same in cells.groupby(["model", "row"], sort=False):
        first = same.iloc[0]
        scores = [
            TableEntry(float(same.loc[same["protocol"] == name, axis].mean()))
            for name in protocols
            for axis in AVERAGED
        ]
        compared = [by_native[cell] for cell in dict.fromkeys(same["cell"]) if cell in by_native]
        weights = float(np.max([one.weights for one in compared])) if compared else math.nan
        predictions = float(np.min([one.same for one in compared])) if compared else math.nan
        ratio = float(np.median([one.edit_ratio for one in compared])) if compared else math.nan
        comparison = (
            TableEntry(weights, notation="e", digits=0),
            TableEntry(predictions, digits=3),
            TableEntry(float(same.drop_duplicates("cell")["edit_s"].mean())),
            TableEntry(ratio, digits=1),
        )
        yield TableRow(f"{first['model_title']}: {first['title']}", (*scores, *comparison))


def _remarks(frame: "SuiteFrame", cells: "pd.DataFrame", found: "Sequence[BackendComparison]") -> Iterator[str]:
    """The badge of a method with its known differences; names the models if not all of the suite were compared."""
    from reports.parity import badge, differences

    first = cells.iloc[0]
    faithful = [one for one in found if one.method == first["method"] and one.is_faithful]
    if faithful:
        reasons = differences(frame.store, faithful[0].reference)
        compared = {one.model for one in faithful}
        titles = [title for name, title in frame.models().items() if name in compared]
        where = "" if len(titles) == len(frame.models()) else f" on {', '.join(titles)}"
        yield f"{first['method_title']}{where}: {badge(faithful, reasons)}."


def _numbers(frame: "SuiteFrame", one: "BackendComparison") -> dict[str, object]:
    from reports.parity import badge, differences

    cells = frame.cells.set_index("cell")
    native = cells.loc[[one.native]].iloc[0]
    return {
        **{"data": native["section_title"], "method": one.method, "model": native["model_title"]},
        **{"template": native["template"], "seed": native["seed"], "variant": one.variant, "faithful": one.is_faithful},
        **{"weights": one.weights, "same": one.same, "probes": one.probes, "edit_ratio": one.edit_ratio},
        "badge": badge([one], differences(frame.store, one.reference)) if one.is_faithful else "",
        "backend": one.backend,
        "cells": f"{one.native} {one.reference}",
    }
