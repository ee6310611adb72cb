"""Table 1 of the OnceEdit paper: models side by side, Rel Gen Loc Avg, then Score and Freq; one table per protocol.

Table 2 (components) is the same layout: the rows are the suite's methods in their order.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from reports.frame import AVERAGED, PROTOCOLS, SuiteFrame
from reports.layout import Column, Entry, Row, Section, Table, ranked
from reports.scores import MISSING, Board, ModelScore, boards
from reports.stats import Estimate
from reports.tables.captions import intervals_shown, seeds_shown
from reports.tables.gaps import absent_sections, empty_rows, gap_remarks

TEMPLATE_NOTE = "†"


def quality_tables(frame: SuiteFrame, *, name: str, title: str) -> tuple[list[Table], pd.DataFrame]:
    """One table per protocol, and every number with its interval, template and cells."""
    all_boards = list(boards(frame))
    tables = [
        _table(frame, list(same), f"{name}-{protocol}", f"{title}, {PROTOCOLS[protocol]}")
        for protocol, same in itertools.groupby(all_boards, key=lambda board: board.protocol)
    ]
    return tables, pd.DataFrame([number for board in all_boards for number in _numbers(board)])


def _table(frame: SuiteFrame, of_protocol: Sequence[Board], name: str, title: str) -> Table:
    templates = list(dict.fromkeys(frame.cells["template"]))
    columns = tuple(
        Column(axis.title(), group=model_title)
        for model_title in of_protocol[0].models.values()
        for axis in (*AVERAGED, "avg")
    )
    columns += (Column("Score"), Column("Freq", is_ranked=False))
    sections = tuple(
        Section(
            board.title,
            ranked(
                [
                    *_rows(board, templates),
                    *empty_rows(frame, board.section, {line.row for line in board.lines}, len(columns)),
                ],
                columns,
            ),
            tuple(_remarks(frame, board)),
        )
        for board in of_protocol
    )
    used = {score.template for board in of_protocol for line in board.lines for score in line.by_model.values()}
    notes = tuple(
        f"{_symbol(other, templates)} with prompt template '{other}'" for other in templates[1:] if other in used
    )
    return Table(name, title, _caption(frame, templates), columns, sections, (*notes, *absent_sections(frame)))


def _rows(board: Board, templates: Sequence[str]) -> Iterator[Row]:
    for line in board.lines:
        entries: list[Entry] = []
        for model in board.models:
            score = line.by_model.get(model)
            entries += [Entry(_axis(score, axis).value) for axis in AVERAGED]
            average = _axis(score, "avg")
            note = _symbol(score.template, templates) if score else ""
            entries.append(Entry(average.value, average.half_width, note=note))
        entries.append(Entry(line.score.value, line.score.half_width))
        has_freq = line.freq is not None and not line.is_reference
        entries.append(Entry(float(line.freq or 0) if has_freq else np.nan, digits=0))
        yield Row(line.title, tuple(entries), line.is_reference)


def _remarks(frame: SuiteFrame, board: Board) -> Iterator[str]:
    """What the numbers of a section leave open: empty entries with the reason, and how far the best is ahead."""
    yield from gap_remarks(frame, board.section, board.title)
    lead = board.lead()
    if lead:
        best, second, difference = lead
        yield (
            f"{board.title}: Score of {best.title} minus {second.title} = {difference.value:+.3f} "
            f"[{difference.low:+.3f}, {difference.high:+.3f}], paired by record."
        )


def _caption(frame: SuiteFrame, templates: Sequence[str]) -> str:
    cells = frame.cells
    sections = cells.drop_duplicates("section")
    data = "; ".join(
        f"{row['section_title']}: {row['edits']} edits, sha256 {row['data_sha256'][:12]}"
        for row in sections.to_dict("records")
    )
    prompt = (
        f"Per method, model and data set the better of the prompt templates {', '.join(templates)} is shown (one for "
        f"all models where one edit serves them all); the unedited model with '{templates[0]}'."
        if len(templates) > 1
        else f"Prompt template: {templates[0]}."
    )
    return (
        f"Suite {frame.manifest['suite']} at {frame.manifest['scale']} scale, "
        f"{' and '.join(dict.fromkeys(cells['schedule']))} editing, {seeds_shown(frame)}. {prompt} "
        "Score: mean of Avg over the models. Freq: acts of editing for all models. "
        "Best in bold, second underlined, the unedited model not ranked. "
        f"{intervals_shown(frame)} {data}. Code: {', '.join(frame.commits())}."
    )


def _numbers(board: Board) -> Iterator[dict[str, object]]:
    """Every number of a board, long form."""
    common = {"protocol": board.protocol, "data": board.title}
    for line in board.lines:
        named = {**common, "method": line.title}
        for is_shown, scores in ((True, line.by_model.values()), (False, line.passed_over)):
            for score in scores:
                for axis, value in score.axes.items():
                    yield {
                        **named,
                        "model": board.models[score.model],
                        "quantity": axis,
                        **_interval(value),
                        "exact": score.exact.get(axis, np.nan),
                        "template": score.template,
                        "is_shown": is_shown,
                        "cells": " ".join(score.cells),
                    }
        cells = " ".join(cell for score in line.by_model.values() for cell in score.cells)
        over_models = {**named, "model": "all", "exact": np.nan, "template": "", "is_shown": True, "cells": cells}
        yield {**over_models, "quantity": "score", **_interval(line.score)}
        freq = np.nan if line.freq is None else float(line.freq)
        yield {**over_models, "quantity": "freq", **_interval(Estimate(freq, np.nan, np.nan))}


def _interval(value: Estimate) -> dict[str, float]:
    return {"value": value.value, "low": value.low, "high": value.high}


def _axis(score: ModelScore | None, axis: str) -> Estimate:
    return score.axes[axis] if score else MISSING


def _symbol(template: str, templates: Sequence[str]) -> str:
    """One dagger for the second template of the suite, two for the third; the first is not marked."""
    return TEMPLATE_NOTE * templates.index(template)
