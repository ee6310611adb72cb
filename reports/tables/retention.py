"""Along a sequence of edits: how many of all edits so far hold, and how many are left of the first ones."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from reports.curves import Curve, Figure, curve, load_curves
from reports.frame import PROTOCOLS, SuiteFrame
from reports.layout import Column, Entry, Row, Section, Table, ranked
from reports.scores import MISSING, Board, Line, ModelScore, boards
from reports.tables.captions import seeds_shown
from reports.tables.gaps import absent_sections, empty_rows, gap_remarks

RETAINED = "Rel of the first edits"

GROUPS = {"Rel": "rel", RETAINED: "rel", "Gen": "gen", "Loc": "loc"}
"""Blocks of columns with their axis, a column for each point; the first edits have no more than one score at the first."""

NOTES = (
    "Columns: edits so far, of all of which Rel, Gen and Loc are.",
    f"{RETAINED}: of those alone that were made before the first point; what it loses from left to right is forgotten.",
)


@dataclass(frozen=True, slots=True)
class _Line:
    """A method on a model in one section; with the prompt template that the table of quality shows."""

    board: Board
    line: Line
    score: ModelScore
    found: Curve


def retention_tables(frame: SuiteFrame) -> tuple[list[Table], pd.DataFrame]:
    """A table per protocol and model, and every number with its interval and cells."""
    scores = load_curves(frame)
    tables, numbers = [], []
    for protocol, same in itertools.groupby(boards(frame), key=lambda board: board.protocol):
        of_protocol = list(same)
        lines = [line for board in of_protocol for line in _lines(frame, board, scores[scores["protocol"] == protocol])]
        tables += [_table(frame, of_protocol, lines, model) for model in frame.models()]
        numbers += [number for line in lines for number in _numbers(line)]
    return tables, pd.DataFrame(numbers)


def _lines(frame: SuiteFrame, board: Board, scores: pd.DataFrame) -> Iterator[_Line]:
    cells = frame.cells.drop_duplicates("cell")
    seed_of = dict(zip(cells["cell"], cells["seed"], strict=True))
    for line in board.lines:
        for score in line.by_model.values():
            of_cells = scores[scores["cell"].isin(score.cells)]
            if len(of_cells):
                yield _Line(board, line, score, curve(of_cells, {cell: seed_of[cell] for cell in score.cells}))


def _table(frame: SuiteFrame, of_protocol: Sequence[Board], lines: Sequence[_Line], model: str) -> Table:
    on_model = {(line.board.section, line.line.row): line for line in lines if line.score.model == model}
    points = sorted({point for board in of_protocol for point in _points(board)})
    places = [(group, point) for group in GROUPS for point in points if group != RETAINED or point > points[0]]
    columns = tuple(Column(str(point), group) for group, point in places)
    sections = tuple(
        Section(
            board.title,
            ranked(
                [
                    *(_row(line, on_model.get((board.section, line.row)), places) for line in board.lines),
                    *empty_rows(frame, board.section, {line.row for line in board.lines}, len(columns)),
                ],
                columns,
            ),
            tuple(gap_remarks(frame, board.section, board.title)),
        )
        for board in of_protocol
    )
    protocol = of_protocol[0].protocol
    return Table(
        f"retention-{protocol}-{model}",
        f"Edits in sequence on {frame.models()[model]}, {PROTOCOLS[protocol]}",
        _caption(frame),
        columns,
        sections,
        (*NOTES, *absent_sections(frame)),
    )


def _row(line: Line, on_model: _Line | None, places: Sequence[tuple[str, int]]) -> Row:
    if on_model is None:
        return Row(line.title, tuple(Entry() for _ in places), line.is_reference)
    found = on_model.found
    figures = [
        Figure(point, GROUPS[group], 1, found.points[0] if group == RETAINED else point) for group, point in places
    ]
    return Row(line.title, tuple(Entry(found.figures.get(one, MISSING).value) for one in figures), line.is_reference)


def _points(board: Board) -> list[int]:
    """Those of the schedule, whatever was scored."""
    points: list[int] = json.loads(board.section)["score_at"]
    return points


def _caption(frame: SuiteFrame) -> str:
    sections = frame.cells.drop_duplicates("section")
    data = "; ".join(
        f"{row['section_title']}: {row['edits']} edits in blocks of {json.loads(row['section'])['block']}"
        for row in sections.to_dict("records")
    )
    return (
        f"Suite {frame.manifest['suite']} at {frame.manifest['scale']} scale, {seeds_shown(frame)}. {data}. "
        "Best in bold, second underlined, the unedited model not ranked. Intervals are in the CSV. "
        f"Code: {', '.join(frame.commits())}."
    )


def _numbers(line: _Line) -> Iterator[dict[str, object]]:
    """Every number of a line, long form: also those of the edits between each two points."""
    for figure, value in line.found.figures.items():
        yield {
            "protocol": line.board.protocol,
            "data": line.board.title,
            "method": line.line.title,
            "model": line.board.models[line.score.model],
            **{"edits": figure.edits, "quantity": figure.axis, "first_edit": figure.first, "last_edit": figure.last},
            **{"value": value.value, "low": value.low, "high": value.high},
            "template": line.score.template,
            "cells": " ".join(line.score.cells),
        }
