"""How well methods that decide by prompt separate edits from other prompts: a summary, and histograms of their scores."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from harness.registry import register_table
from reports.common import (
    absent_sections,
    commits_shown,
    first_template,
    gap_remarks,
    intervals_shown,
    schedules_shown,
    seeds_shown,
    suite_shown,
)
from reports.layout import Column, Section, Table, TableEntry, TableRow

if TYPE_CHECKING:
    import pandas as pd

    from reports.calibration import Calibration, Measure
    from reports.frame import SuiteFrame
    from reports.scores import Board, Line, ModelScore

AXIS_TITLES = {"reliability": "Rel", "generality": "Gen", "locality": "Loc", "locality_unrelated": "Unrel"}
"""Axes in the order of their columns; portability is only in the CSV."""


@dataclass(frozen=True, slots=True)
class _MethodCalibration:
    """The calibration of a method on a model in one section, under the prompt template shown in the main table.

    Attributes:
        title: title of the method, with the template unless it is the suite's first.
        cells: cells with routing scores, one per seed.
    """

    board: "Board"
    line: "Line"
    score: "ModelScore"
    title: str
    cells: tuple[str, ...]
    found: "Calibration"

    @property
    def model_title(self) -> str:
        """Title of the model."""
        return self.board.models[self.score.model]


@register_table("calibration")
def calibration(frame: "SuiteFrame") -> tuple[list[Table], "pd.DataFrame"]:
    """How well routing scores separate edits from other prompts: means, AUROC, thresholds and histograms."""
    import pandas as pd

    from reports.scores import boards

    first = frame.cells.iloc[0]["protocol"]  # all protocols ask the same prompts
    by_board = {board.section: list(_calibrations(frame, board)) for board in boards(frame) if board.protocol == first}
    found = [one for of_board in by_board.values() for one in of_board]
    by_model = {model: [one for one in found if one.score.model == model] for model in frame.models()}
    histograms = [_histograms(frame, model, of_model) for model, of_model in by_model.items() if of_model]
    return [_summary(frame, by_board), *histograms], pd.DataFrame([number for one in found for number in _numbers(one)])


def _calibrations(frame: "SuiteFrame", board: "Board") -> Iterator[_MethodCalibration]:
    from reports.calibration import estimate_calibration

    by_cell = dict(iter(frame.scopes.groupby("cell")))
    first = first_template(frame)
    for line in board.lines:
        for score in line.by_model.values():
            cells = tuple(cell for cell in score.cells if cell in by_cell)
            if cells:
                title = line.title + (f" (prompt template '{score.template}')" if score.template != first else "")
                found = estimate_calibration([by_cell[cell] for cell in cells])
                yield _MethodCalibration(board, line, score, title, cells, found)


def _summary(frame: "SuiteFrame", by_board: "Mapping[str, Sequence[_MethodCalibration]]") -> Table:
    """One row per method and model."""
    groups = _groups()
    columns = tuple(
        Column(AXIS_TITLES[measure.axis], group, is_ranked=False)
        for group, measures in groups.items()
        for measure in measures
    )
    sections = tuple(
        Section(
            of_board[0].board.title,
            tuple(_row(one, [measure for measures in groups.values() for measure in measures]) for one in of_board),
            tuple(gap_remarks(frame, section, of_board[0].board.title)),
        )
        for section, of_board in by_board.items()
        if of_board
    )
    shown = {one.line.row for of_board in by_board.values() for one in of_board}
    notes = (*_notes(), *_left_out(frame, shown), *absent_sections(frame))
    caption = f"{_caption(frame)} {intervals_shown(frame)}"
    return Table("calibration", "Calibration of routing scores", caption, columns, sections, notes)


def _groups() -> "dict[str, list[Measure]]":
    """Measures of the columns by group heading."""
    from harness.evaluation.scope import ABOVE, BELOW, INSIDE, OUTSIDE, SHARES
    from reports.calibration import Measure

    return {
        "Mean routing score": [Measure("mean", axis) for axis in AXIS_TITLES],
        "AUROC": [Measure("auroc", axis, "both") for axis in INSIDE],
        f"> {ABOVE}": [Measure(SHARES[axis], axis) for axis in INSIDE],
        f"< {BELOW}": [Measure(SHARES[axis], axis) for axis in OUTSIDE["both"]],
    }


def _notes() -> tuple[str, ...]:
    from harness.evaluation.scope import ABOVE, BELOW

    return (
        "Routing score: OnceEdit's alpha; for a memory, 1 if it answers the prompt itself and 0 otherwise.",
        "AUROC: probability that an edit (Rel) or a rephrase (Gen) scores higher than a locality or unrelated prompt.",
        f"> {ABOVE}: share of edits and rephrases that score higher, i.e. are treated as edits. "
        f"< {BELOW}: share of locality and unrelated prompts that score lower, i.e. are left to the unedited model.",
    )


def _row(one: _MethodCalibration, measures: "Sequence[Measure]") -> TableRow:
    entries = []
    for measure in measures:
        estimate = one.found.estimates[measure]
        is_auroc = measure.quantity == "auroc"
        entries.append(
            TableEntry(estimate.value, estimate.half_width, digits=3) if is_auroc else TableEntry(estimate.value)
        )
    return TableRow(f"{one.title} on {one.model_title}", tuple(entries))


def _histograms(frame: "SuiteFrame", model: str, found: Sequence[_MethodCalibration]) -> Table:
    from harness.evaluation.scope import BINS

    edges = [f"{edge / BINS:.1f}".removeprefix("0") for edge in range(BINS)]
    columns = tuple(
        Column(edge, "Share of questions by routing score (lower edge of each bin)", is_ranked=False) for edge in edges
    )
    by_section: dict[str, list[TableRow]] = {}
    for one in found:
        by_section.setdefault(one.board.title, []).extend(
            TableRow(f"{one.title}, {title}", tuple(TableEntry(float(share)) for share in one.found.histograms[axis]))
            for axis, title in AXIS_TITLES.items()
        )
    sections = tuple(Section(title, tuple(of_section)) for title, of_section in by_section.items())
    title = f"Histograms of routing scores on {frame.models()[model]}"
    return Table(f"calibration-histogram-{model}", title, _caption(frame), columns, sections)


def _left_out(frame: "SuiteFrame", shown: set[str]) -> Iterator[str]:
    edits = frame.cells[~frame.cells["is_reference"]]
    others = edits.loc[~edits["row"].isin(shown), "title"]
    if len(others):
        names = ", ".join(dict.fromkeys(others))
        yield f"Not shown, as they do not decide by prompt or were run before routing scores were recorded: {names}."


def _caption(frame: "SuiteFrame") -> str:
    return (
        f"{suite_shown(frame)}, {schedules_shown(frame)}, {seeds_shown(frame)}. Rel: edits; Gen: rephrases; Loc: locality "
        f"prompts; Unrel: prompts about unrelated records. Each question counts once. "
        f"{commits_shown(frame)}"
    )


def _numbers(one: _MethodCalibration) -> Iterator[dict[str, object]]:
    """Every number of a row in long form; a bin of a histogram is named by its lower edge."""
    from harness.evaluation.scope import BINS
    from reports.calibration import MEASURES, Measure

    common = {"data": one.board.title, "method": one.line.title, "model": one.model_title}
    origin = {"template": one.score.template, "cells": " ".join(one.cells)}
    for measure in MEASURES:
        asked = {**measure._asdict(), "bin": math.nan, "questions": one.found.questions[measure.axis]}
        yield {**common, **asked, **asdict(one.found.estimates[measure]), **origin}
    for axis, shares in one.found.histograms.items():
        asked = {**Measure("histogram", axis)._asdict(), "questions": one.found.questions[axis]}
        for number, share in enumerate(shares):
            yield {**common, **asked, "bin": number / BINS, "value": share, "low": math.nan, "high": math.nan, **origin}
