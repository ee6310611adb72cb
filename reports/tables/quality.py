"""Editing quality: models side by side with Rel, Gen, Loc and Avg, then Score and Freq; one table per protocol.

This is the layout of Table 1 of the OnceEdit paper, and of Tables 2 and 8, where the rows are variants of one method.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from harness.registry import register_table
from reports.common import (
    AVERAGED,
    absent_sections,
    commits_shown,
    complete_section,
    intervals_shown,
    protocol_title,
    remarks_shown,
    samples_shown,
    schedules_shown,
    seeds_shown,
    suite_shown,
)
from reports.layout import Column, Section, Table, TableEntry, TableRow
from reports.published import ALL
from reports.published import TITLE as PAPER

if TYPE_CHECKING:
    import pandas as pd

    from reports.frame import SuiteFrame
    from reports.published import Published
    from reports.scores import Board, ModelScore
    from reports.significance import Contest
    from reports.stats import Floats

TEMPLATE_NOTE = "‡"
DOUBT = "?"
"""Marks a published number that contradicts other published ones."""


@register_table("main")
def main(frame: "SuiteFrame") -> tuple[list[Table], "pd.DataFrame"]:
    """Editing quality of all methods (Table 1 of the OnceEdit paper)."""
    return _quality(frame, "main", "Editing quality")


@register_table("components")
def components(frame: "SuiteFrame") -> tuple[list[Table], "pd.DataFrame"]:
    """Editing quality with and without the components of a method (Table 2 of the OnceEdit paper)."""
    return _quality(frame, "components", "Component ablation")


@register_table("ablation")
def ablation(frame: "SuiteFrame") -> tuple[list[Table], "pd.DataFrame"]:
    """Editing quality for several values of one setting (Table 8 of the OnceEdit paper)."""
    return _quality(frame, "ablation", "Sensitivity to one setting")


def _quality(frame: "SuiteFrame", name: str, title: str) -> tuple[list[Table], "pd.DataFrame"]:
    """One table per protocol, and every number with its interval, template and cells."""
    import pandas as pd

    from reports.scores import boards

    all_boards = list(boards(frame))
    tables = [
        _table(frame, list(same), f"{name}-{protocol}", f"{title}, {protocol_title(protocol)}")
        for protocol, same in itertools.groupby(all_boards, key=lambda board: board.protocol)
    ]
    return tables, pd.DataFrame([number for board in all_boards for number in _numbers(board)])


def _table(frame: "SuiteFrame", of_protocol: "Sequence[Board]", name: str, title: str) -> Table:
    templates = frame.templates()
    paper = _Paper.of(frame, of_protocol)
    columns = tuple(
        Column(title, group, is_ranked=title not in (PAPER, "Freq"))
        for group, title in _headings(of_protocol[0].models, paper)
    )
    sections = tuple(_section(frame, board, templates, columns, paper) for board in of_protocol)
    contests = [contest for number, board in enumerate(of_protocol) for contest in _contests(number, board, columns)]
    used = {score.template for board in of_protocol for line in board.lines for score in line.by_model.values()}
    notes = tuple(
        f"{_symbol(other, templates)} with prompt template '{other}'" for other in templates[1:] if other in used
    )
    notes += remarks_shown(frame)
    from reports.significance import judged

    shown = frame.cells[frame.cells["protocol"] == of_protocol[0].protocol]
    notes += (*paper.notes(), *samples_shown(frame, shown), *absent_sections(frame))
    return judged(Table(name, title, _caption(frame, templates), columns, sections, notes), contests)


def _headings(models: Mapping[str, str], paper: "_Paper") -> Iterator[tuple[str, str]]:
    """Group and title of each column."""
    for model, group in models.items():
        for axis in (*AVERAGED, "avg"):
            yield group, axis.title()
        if model in paper.models:
            yield group, PAPER
    yield "", "Score"
    if ALL in paper.models:
        yield "", PAPER
    yield "", "Freq"


@dataclass(frozen=True, slots=True)
class _Paper:
    """Published numbers of a table's rows.

    Attributes:
        numbers: by section, row and model; the model is `ALL` for Score.
        models: those that have at least one number; `ALL` only if the published Score is over the models of the table.
    """

    numbers: "Mapping[tuple[str, str, str], Published]"
    models: frozenset[str]

    @classmethod
    def of(cls, frame: "SuiteFrame", boards: "Sequence[Board]") -> "_Paper":
        """What the suite's file of published numbers has about these boards."""
        from reports.published import Place, models_of, read

        known, numbers = read(frame.manifest.published), {}
        data = {str(row["section"]): row for row in frame.cells.drop_duplicates("section").to_dict("records")}
        for board in boards:
            name, edits = str(data[board.section]["data"]), int(data[board.section]["edits"])
            for line in board.lines:
                for model in (*board.models, ALL):
                    place = Place(line.row.partition("/")[0], model, name, board.protocol, edits)
                    if place in known and (model != ALL or models_of(known, place) == board.models.keys()):
                        numbers[board.section, line.row, model] = known[place]
        return cls(numbers, frozenset(model for *_, model in numbers))

    def entries(self, section: str, row: str, model: str) -> list[TableEntry]:
        """The entry of a row, in a list; an empty list if there is no column for the model."""
        if model not in self.models:
            return []
        found = self.numbers.get((section, row, model))
        return [TableEntry(found.avg, note=DOUBT * bool(found.note)) if found else TableEntry()]

    def notes(self) -> Iterator[str]:
        """Where the numbers are from, and what is wrong with them."""
        shown = [number for (*_, model), number in self.numbers.items() if model in self.models]
        if shown:
            tables = ", ".join(sorted({number.table for number in shown}))
            yield f"{PAPER}: Avg and Score as printed in the OnceEdit paper (arXiv 2506.00817), Table {tables}."
        for note in dict.fromkeys(number.note for number in shown if number.note):
            yield f"{DOUBT} as printed, but {note}."


def _contests(section: int, board: "Board", columns: Sequence[Column]) -> "Iterator[Contest]":
    """The ranked columns of a section: Rel, Gen, Loc and Avg of each model, then Score."""
    import numpy as np

    from reports.scores import AVG_WEIGHTS, score_weights
    from reports.significance import Contest
    from reports.stats import side_by_side

    def contest(column: int, models: Sequence[str], weights_C: "Floats") -> "Contest":
        able = {
            row: line
            for row, line in enumerate(board.lines)
            if not line.is_reference and all(_is_complete(line.by_model.get(model), weights_C) for model in models)
        }
        values = {
            row: np.concatenate([line.by_model[model].shares_KC for model in models], axis=1) @ weights_C
            for row, line in able.items()
        }

        def p_value(left: int, right: int) -> float | None:
            if not (able[left].has_choice or able[right].has_choice):
                return None
            first, second = (
                side_by_side([able[row].by_model[model].resampled for model in models]) for row in (left, right)
            )
            return first.p_value(second, weights_C)

        return Contest(section, column, values, p_value)

    place_of = {(column.group, column.title): place for place, column in enumerate(columns)}
    for model, title in board.models.items():
        for axis, weights_C in zip((*AVERAGED, "avg"), [*np.eye(len(AVERAGED)), AVG_WEIGHTS], strict=True):
            yield contest(place_of[title, axis.title()], [model], weights_C)
    yield contest(place_of["", "Score"], list(board.models), score_weights(len(board.models)))


def _is_complete(score: "ModelScore | None", weights_C: "Floats") -> bool:
    """Whether a method has a score on a model, and so on every axis that counts."""
    if score is None:
        return False
    of_model = weights_C[: len(AVERAGED)]
    return not any(math.isnan(score.axes[axis].value) for axis, w in zip(AVERAGED, of_model, strict=True) if w)


def _section(
    frame: "SuiteFrame", board: "Board", templates: Sequence[str], columns: Sequence[Column], paper: _Paper
) -> Section:
    lead = board.lead()
    if lead is None:
        return complete_section(frame, board, _rows(board, templates, paper), columns)
    best, second, difference = lead
    remark = (
        f"{board.title}: Score of {best.title} minus {second.title} = {difference.value:+.3f} "
        f"[{difference.low:+.3f}, {difference.high:+.3f}], paired by record."
    )
    return complete_section(frame, board, _rows(board, templates, paper), columns, remark)


def _rows(board: "Board", templates: Sequence[str], paper: _Paper) -> Iterator[TableRow]:
    for line in board.lines:
        entries: list[TableEntry] = []
        for model in board.models:
            entries += _model_entries(line.by_model.get(model), templates)
            entries += paper.entries(board.section, line.row, model)
        entries.append(TableEntry(line.score.value, line.score.half_width))
        entries += paper.entries(board.section, line.row, ALL)
        has_freq = line.freq is not None and not line.is_reference
        entries.append(TableEntry(float(line.freq or 0) if has_freq else math.nan, digits=0))
        yield TableRow(line.title, tuple(entries), line.is_reference)


def _model_entries(score: "ModelScore | None", templates: Sequence[str]) -> Iterator[TableEntry]:
    """Rel, Gen, Loc and Avg of one model."""
    if score is None:
        yield from itertools.repeat(TableEntry(), len(AVERAGED) + 1)
        return
    for axis in AVERAGED:
        yield TableEntry(score.axes[axis].value)
    average = score.axes["avg"]
    yield TableEntry(average.value, average.half_width, note=_symbol(score.template, templates))


def _caption(frame: "SuiteFrame", templates: Sequence[str]) -> str:
    data = "; ".join(
        f"{row['section_title']}: {row['edits']} edits, SHA-256 {row['data_sha256'][:12]}"
        for row in frame.cells.drop_duplicates("section").to_dict("records")
    )
    quoted = [f"'{template}'" for template in templates]
    prompt = (
        f"For each method, model and dataset, the best of the prompt templates {', '.join(quoted[:-1])} and {quoted[-1]} "
        f"is shown (one for all models where a single edit serves them all); for the unedited model, {quoted[0]}."
        if len(templates) > 1
        else f"Prompt template: {templates[0]}."
    )
    return (
        f"{suite_shown(frame)}, {schedules_shown(frame)}, {seeds_shown(frame)}. {prompt} "
        "Rel, Gen, Loc: reliability, generality, locality; Avg: their mean. Score: mean of Avg over the models. "
        "Freq: number of edit runs needed for all models. "
        "The unedited model is not ranked. "
        f"{intervals_shown(frame, has_choice=True)} {data}. {commits_shown(frame)}"
    )


def _numbers(board: "Board") -> Iterator[dict[str, object]]:
    """Every number of a board in long form."""
    common = {"protocol": board.protocol, "data": board.title}
    for line in board.lines:
        named = {**common, "method": line.title}
        for is_shown, scores in ((True, line.by_model.values()), (False, line.passed_over)):
            for score in scores:
                for axis, estimate in score.axes.items():
                    yield {
                        **named,
                        "model": board.models[score.model],
                        "quantity": axis,
                        **asdict(estimate),
                        "exact": score.exact.get(axis, math.nan),
                        "template": score.template,
                        "is_shown": is_shown,
                        "cells": " ".join(score.cells),
                    }
        cells = " ".join(cell for score in line.by_model.values() for cell in score.cells)
        over_models = {**named, "model": "all", "exact": math.nan, "template": "", "is_shown": True, "cells": cells}
        yield {**over_models, "quantity": "score", **asdict(line.score)}
        freq = math.nan if line.freq is None else float(line.freq)
        yield {**over_models, "quantity": "freq", "value": freq, "low": math.nan, "high": math.nan}


def _symbol(template: str, templates: Sequence[str]) -> str:
    """One double dagger for the second template of the suite, two for the third; none for the first."""
    return TEMPLATE_NOTE * templates.index(template)
