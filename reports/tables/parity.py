"""Each method natively and through EasyEdit, side by side: scores, weights, predictions, seconds, and a badge of fidelity."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from reports.frame import AVERAGED, PROTOCOLS, SuiteFrame
from reports.layout import Column, Entry, Row, Section, Table
from reports.parity import (
    PREDICTIONS_FROM,
    REFERENCE,
    WEIGHTS_WITHIN,
    Comparison,
    badge,
    comparisons,
    differences,
)
from reports.tables.captions import seeds_shown
from reports.tables.gaps import absent_sections, gap_remarks

NOTES = (
    "Δw: Frobenius norm of the difference between native and EasyEdit's weights, relative to the norm of EasyEdit's change; "
    "dash: no changed weights were kept of one or both.",
    "Same: share of all probes with the same prediction as EasyEdit's. ×: EasyEdit's seconds over these.",
    f"Equivalent: Δw at most {WEIGHTS_WITHIN:.0e}, or without changed weights Same at least {PREDICTIONS_FROM:.2f}.",
)


def parity_tables(frame: SuiteFrame) -> tuple[list[Table], pd.DataFrame]:
    """One table per data set, a part for each method, and every comparison in long form."""
    found = list(comparisons(frame))
    tables = [
        _table(frame, cells, [one for one in found if one.section == section])
        for section, cells in frame.cells.groupby("section", sort=False)
    ]
    return tables, pd.DataFrame([_numbers(frame, one) for one in found])


def _table(frame: SuiteFrame, cells: pd.DataFrame, found: Sequence[Comparison]) -> Table:
    protocols = [name for name in PROTOCOLS if name in set(cells["protocol"])]
    columns = tuple(Column(axis.title(), PROTOCOLS[name], is_ranked=False) for name in protocols for axis in AVERAGED)
    columns += tuple(Column(title, "against EasyEdit", is_ranked=False) for title in ("Δw", "Same", "s", "×"))
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
        f"Suite {frame.manifest['suite']} at {frame.manifest['scale']} scale, {first['section_title']}, "
        f"{first['edits']} edits, {seeds_shown(frame)}. Device: {'; '.join(dict.fromkeys(cells['device_class']))}. "
        f"Code: {', '.join(frame.commits())}."
    )
    title = f"Native implementations and EasyEdit's on {first['section_title']}"
    gaps = (*gap_remarks(frame, first["section"], first["section_title"]), *absent_sections(frame))
    return Table(f"parity-{first['data']}", title, caption, columns, sections, (*NOTES, *gaps))


def _rows(cells: pd.DataFrame, protocols: Sequence[str], found: Sequence[Comparison]) -> Iterator[Row]:
    """A row per model and entry of the suite; means over seeds, of comparisons the worst."""
    by_native = {one.native: one for one in found}
    for (_, _), same in cells.groupby(["model", "row"], sort=False):
        first = same.iloc[0]
        scores = [
            Entry(float(same.loc[same["protocol"] == name, axis].mean())) for name in protocols for axis in AVERAGED
        ]
        beside = [by_native[cell] for cell in dict.fromkeys(same["cell"]) if cell in by_native]
        against = (
            Entry(float(np.max([one.weights for one in beside])) if beside else np.nan, notation="e", digits=0),
            Entry(float(np.min([one.same for one in beside])) if beside else np.nan, digits=3),
            Entry(float(same.drop_duplicates("cell")["edit_s"].mean())),
            Entry(float(np.median([one.edit_ratio for one in beside])) if beside else np.nan, digits=1),
        )
        yield Row(f"{first['model_title']}: {first['title']}", (*scores, *against))


def _remarks(frame: SuiteFrame, cells: pd.DataFrame, found: Sequence[Comparison]) -> Iterator[str]:
    """The badge of a method, what it is known to differ in, and on which models where those are not all of the suite."""
    first = cells.iloc[0]
    faithful = [one for one in found if one.method == first["method"] and one.is_faithful]
    if faithful:
        reasons = differences(frame.store, faithful[0].reference)
        titles = {title: name in {one.model for one in faithful} for name, title in frame.models().items()}
        where = "" if all(titles.values()) else f" on {', '.join(title for title, is_on in titles.items() if is_on)}"
        yield f"{first['method_title']}{where}: {badge(faithful, reasons)}."


def _numbers(frame: SuiteFrame, one: Comparison) -> dict[str, object]:
    cells = frame.cells.set_index("cell")
    native = cells.loc[[one.native]].iloc[0]
    return {
        **{"data": native["section_title"], "method": one.method, "model": native["model_title"]},
        **{"template": native["template"], "seed": native["seed"], "variant": one.variant, "faithful": one.is_faithful},
        **{"weights": one.weights, "same": one.same, "probes": one.probes, "edit_ratio": one.edit_ratio},
        "badge": badge([one], differences(frame.store, one.reference)) if one.is_faithful else "",
        "backend": REFERENCE,
        "cells": f"{one.native} {one.reference}",
    }
