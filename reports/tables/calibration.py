"""How well methods that decide by prompt tell edits from the rest: one line per method and model, and histograms."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.evaluation.scope import ABOVE, BELOW, BINS, INSIDE, OUTSIDE, SHARES
from reports.calibration import FIGURES, Calibration, Figure, calibration
from reports.frame import SuiteFrame
from reports.layout import Column, Entry, Row, Section, Table
from reports.scores import Board, Line, ModelScore, boards
from reports.tables.captions import intervals_shown, seeds_shown
from reports.tables.gaps import absent_sections, gap_remarks

AXIS_TITLES = {"reliability": "Rel", "generality": "Gen", "locality": "Loc", "locality_unrelated": "Unrel"}
"""Axes in the order of their columns; portability is in the numbers only."""

GROUPS = {
    "Mean scope": [Figure("mean", axis) for axis in AXIS_TITLES],
    "AUROC": [Figure("auroc", axis, "both") for axis in INSIDE],
    f"> {ABOVE}": [Figure(SHARES[axis], axis) for axis in INSIDE],
    f"< {BELOW}": [Figure(SHARES[axis], axis) for axis in OUTSIDE["both"]],
}

NOTES = (
    "Scope: how far a method takes a prompt for one of its edits; OnceEdit: alpha, a routed memory: 1 where it answers.",
    "AUROC: chance that an edit (Rel) or a rephrase (Gen) has a larger scope than a locality or unrelated prompt.",
    f"> {ABOVE}: share of edits and rephrases that are taken for an edit; "
    f"< {BELOW}: share of locality and unrelated prompts that are left alone.",
)


@dataclass(frozen=True, slots=True)
class _Row:
    """A method on a model in one section, with the prompt template that the table of quality shows.

    Attributes:
        title: of the method, with the template where it is not the suite's first.
        cells: those that have a scope, one per seed.
    """

    board: Board
    line: Line
    score: ModelScore
    title: str
    cells: tuple[str, ...]
    found: Calibration

    @property
    def model_title(self) -> str:
        """As in the table of quality."""
        return self.board.models[self.score.model]


def calibration_tables(frame: SuiteFrame) -> tuple[list[Table], pd.DataFrame]:
    """Figures of all methods and models, a table of histograms per model, and all of it with intervals and cells."""
    first = frame.cells.iloc[0]["protocol"]  # all protocols ask the same prompts
    by_board = {board.section: list(_rows(frame, board)) for board in boards(frame) if board.protocol == first}
    rows = [row for of_board in by_board.values() for row in of_board]
    columns = tuple(
        Column(AXIS_TITLES[figure.axis], group, is_ranked=False)
        for group, figures in GROUPS.items()
        for figure in figures
    )
    sections = tuple(
        Section(
            of_board[0].board.title,
            tuple(_figures(row) for row in of_board),
            tuple(gap_remarks(frame, section, of_board[0].board.title)),
        )
        for section, of_board in by_board.items()
        if of_board
    )
    notes = (*NOTES, *_left_out(frame, rows), *absent_sections(frame))
    table = Table(
        "calibration", "Scope of the edits", f"{_caption(frame)} {intervals_shown(frame)}", columns, sections, notes
    )
    by_model = {model: [row for row in rows if row.score.model == model] for model in frame.models()}
    histograms = [_histograms(frame, model, of_model) for model, of_model in by_model.items() if of_model]
    return [table, *histograms], pd.DataFrame([number for row in rows for number in _numbers(row)])


def _rows(frame: SuiteFrame, board: Board) -> Iterator[_Row]:
    by_cell = dict(iter(frame.scopes.groupby("cell")))
    first = frame.cells.iloc[0]["template"]
    for line in board.lines:
        for score in line.by_model.values():
            cells = tuple(cell for cell in score.cells if cell in by_cell)
            if cells:
                title = line.title + (f" (prompt '{score.template}')" if score.template != first else "")
                yield _Row(board, line, score, title, cells, calibration([by_cell[cell] for cell in cells]))


def _figures(row: _Row) -> Row:
    estimates = {figure: row.found.figures[figure] for figures in GROUPS.values() for figure in figures}
    entries = (
        Entry(one.value, one.half_width, digits=3) if figure.quantity == "auroc" else Entry(one.value)
        for figure, one in estimates.items()
    )
    return Row(f"{row.title} on {row.model_title}", tuple(entries))


def _histograms(frame: SuiteFrame, model: str, rows: Sequence[_Row]) -> Table:
    edges = [f"{edge / BINS:.1f}".removeprefix("0") for edge in range(BINS)]
    columns = tuple(Column(edge, "Share of questions by scope, from", is_ranked=False) for edge in edges)
    by_section: dict[str, list[Row]] = {}
    for row in rows:
        by_section.setdefault(row.board.title, []).extend(
            Row(f"{row.title}, {title}", tuple(Entry(float(share)) for share in row.found.histograms[axis]))
            for axis, title in AXIS_TITLES.items()
        )
    sections = tuple(Section(title, tuple(of_section)) for title, of_section in by_section.items())
    title = f"Histograms of the scope on {frame.models()[model]}"
    return Table(f"calibration-histogram-{model}", title, _caption(frame), columns, sections)


def _left_out(frame: SuiteFrame, rows: Sequence[_Row]) -> Iterator[str]:
    edits = frame.cells[~frame.cells["is_reference"]]
    shown = {row.line.row for row in rows}
    others = edits.loc[~edits["row"].isin(shown), "title"]
    if len(others):
        names = ", ".join(dict.fromkeys(others))
        yield f"Without a scope, because they do not decide by prompt or ran before it was recorded: {names}."


def _caption(frame: SuiteFrame) -> str:
    cells = frame.cells
    return (
        f"Suite {frame.manifest['suite']} at {frame.manifest['scale']} scale, "
        f"{' and '.join(dict.fromkeys(cells['schedule']))} editing, {seeds_shown(frame)}. Every question counts once. "
        f"Code: {', '.join(frame.commits())}."
    )


def _numbers(row: _Row) -> Iterator[dict[str, object]]:
    """Every number of a row, long form; a bin of a histogram is named by its lower edge."""
    common = {"data": row.board.title, "method": row.line.title, "model": row.model_title}
    origin = {"template": row.score.template, "cells": " ".join(row.cells)}
    for figure in FIGURES:
        one = row.found.figures[figure]
        asked = {**figure._asdict(), "bin": np.nan, "questions": row.found.questions[figure.axis]}
        yield {**common, **asked, "value": one.value, "low": one.low, "high": one.high, **origin}
    for axis, shares in row.found.histograms.items():
        asked = {**Figure("histogram", axis)._asdict(), "questions": row.found.questions[axis]}
        for number, share in enumerate(shares):
            yield {**common, **asked, "bin": number / BINS, "value": share, "low": np.nan, "high": np.nan, **origin}
