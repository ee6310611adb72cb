"""Sequential editing: scores over all edits so far, and how much is left of the first edits."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from harness.registry import register_table
from reports.common import (
    absent_sections,
    commits_shown,
    complete_section,
    protocol_title,
    samples_shown,
    score_points,
    seeds_shown,
    sequences_shown,
    suite_shown,
)
from reports.layout import Column, Table, TableEntry, TableRow

if TYPE_CHECKING:
    import pandas as pd

    from reports.curves import Curve, CurvePoint, MethodCurve
    from reports.frame import SuiteFrame
    from reports.scores import Board, Line
    from reports.significance import Contest

RETAINED = "Rel of the first edits"

GROUPS = {"Rel": "rel", RETAINED: "rel", "Gen": "gen", "Loc": "loc"}
"""Groups of columns with their axis; one column per point, except that the first edits have none at the first point."""

NOTES = (
    "Columns give the number of edits so far. Rel, Gen and Loc are over all of these edits.",
    f"{RETAINED}: over the edits made up to the first point only; a decline from left to right is forgetting.",
)


@register_table("retention", needs_sequence=True)
def retention(frame: "SuiteFrame") -> tuple[list[Table], "pd.DataFrame"]:
    """Scores along a sequence of edits, and how much is left of the first edits."""
    import pandas as pd

    from reports.curves import method_curves
    from reports.scores import boards

    tables, numbers, found = [], [], method_curves(frame)
    for protocol, same in itertools.groupby(boards(frame), key=lambda board: board.protocol):
        of_protocol, curves = list(same), [one for one in found if one.board.protocol == protocol]
        tables += [_table(frame, of_protocol, curves, model) for model in frame.models()]
        numbers += [number for one in curves for number in _numbers(one)]
    return tables, pd.DataFrame(numbers)


def _table(frame: "SuiteFrame", of_protocol: "Sequence[Board]", curves: "Sequence[MethodCurve]", model: str) -> Table:
    from reports.significance import judged

    on_model = {(one.board.section, one.line.row): one.found for one in curves if one.score.model == model}
    points = sorted({point for board in of_protocol for point in score_points(board.section)})
    places = [(group, point) for group in GROUPS for point in points if group != RETAINED or point > points[0]]
    columns = tuple(Column(str(point), group) for group, point in places)
    sections = tuple(
        complete_section(
            frame,
            board,
            [_row(line, on_model.get((board.section, line.row)), places) for line in board.lines],
            columns,
            model=model,
        )
        for board in of_protocol
    )
    protocol = of_protocol[0].protocol
    contests = []
    for number, board in enumerate(of_protocol):
        curves_of = {
            row: found
            for row, line in enumerate(board.lines)
            if not line.is_reference and (found := on_model.get((board.section, line.row)))
        }
        contests += [_contest(number, column, *place, curves_of) for column, place in enumerate(places)]
    table = Table(
        f"retention-{protocol}-{model}",
        f"Sequential editing of {frame.models()[model]}, {protocol_title(protocol)}",
        _caption(frame),
        columns,
        sections,
        (
            *NOTES,
            *samples_shown(frame, frame.cells[frame.cells["protocol"] == protocol]),
            *absent_sections(frame, by_model=True),
        ),
    )
    return judged(table, contests)


def _contest(section: int, column: int, group: str, point: int, curves: "Mapping[int, Curve]") -> "Contest":
    """A column of a section, of all methods that have it."""
    from reports.significance import Contest

    able = {
        row: (found, place) for row, found in curves.items() if (place := _place(group, point, found)) in found.shares_K
    }
    values = {row: found.shares_K[place] for row, (found, place) in able.items()}
    return Contest(section, column, values, lambda left, right: able[left][0].p_value(able[left][1], *able[right]))


def _place(group: str, point: int, curve: "Curve") -> "CurvePoint":
    """The score of a column: over all edits so far, or over the first ones."""
    from reports.curves import CurvePoint

    return CurvePoint(point, GROUPS[group], 1, curve.points[0] if group == RETAINED else point)


def _row(line: "Line", found: "Curve | None", places: Sequence[tuple[str, int]]) -> TableRow:
    entries = (
        TableEntry(found.value(point, GROUPS[group], found.points[0] if group == RETAINED else point))
        if found
        else TableEntry()
        for group, point in places
    )
    return TableRow(line.title, tuple(entries), line.is_reference)


def _caption(frame: "SuiteFrame") -> str:
    return (
        f"{suite_shown(frame)}, {seeds_shown(frame)}. {sequences_shown(frame)}. The "
        f"unedited model is not ranked. Confidence intervals are in the CSV file. {commits_shown(frame)}"
    )


def _numbers(one: "MethodCurve") -> Iterator[dict[str, object]]:
    """Every number of a curve in long form, including those over the edits between two adjacent points."""
    for place, estimate in one.found.estimates.items():
        yield {
            "protocol": one.board.protocol,
            "data": one.board.title,
            "method": one.line.title,
            "model": one.board.models[one.score.model],
            **{"edits": place.edits, "quantity": place.axis, "first_edit": place.first, "last_edit": place.last},
            **asdict(estimate),
            "template": one.score.template,
            "cells": " ".join(one.score.cells),
        }
