"""How much of a teacher-forced score is left when a model answers as in practice, and which step loses how much."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.registry import register_table
from reports.common import (
    absent_sections,
    commits_shown,
    empty_rows,
    first_template,
    gap_remarks,
    intervals_shown,
    seeds_shown,
    suite_shown,
    template_shown,
)
from reports.layout import Column, Section, Table, TableEntry, TableRow

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from reports.frame import SuiteFrame
    from reports.stats import Estimate

Measure = tuple[str, str]
"""A protocol, and the column of its records: `exact` or `score`."""

STAGES: tuple[Measure, ...] = (
    ("teacher_forced", "score"),
    ("generation", "score"),
    ("generation", "exact"),
    ("natural", "exact"),
    ("natural_instruct", "exact"),
)
STEPS = ("Content", "Metric", "Length", "Instruction")
"""What is different from each stage to the next."""

PROTOCOLS = tuple(dict.fromkeys(name for name, _ in STAGES))

AXES = {"rel": "Reliability", "gen": "Generality"}

NOTES = (
    "Start: share of the target's tokens that are right, each predicted from the target's own tokens before it (teacher-forced).",
    "Content: the same share, in an answer generated from the prompt alone. Metric: the whole target counts, not a share of it. "
    "Length: the answer ends by itself, and its words are compared. Instruction: the model is told to answer in few words.",
    "Steps are changes of the score, and add up to the difference between start and end.",
)


@dataclass(frozen=True, slots=True)
class Line:
    """The changes of one method on one model and dataset.

    Attributes:
        row: as in `SuiteFrame.cells`.
        steps: start, changes and end.
        stages: the score at each stage.
    """

    row: str
    title: str
    is_reference: bool
    steps: tuple["Estimate", ...]
    stages: tuple["Estimate", ...]
    cells: tuple[str, ...]


@register_table("mirage")
def mirage(frame: "SuiteFrame") -> tuple[list[Table], "pd.DataFrame"]:
    """From teacher-forced to natural answers in four steps, each with its share of the drop."""
    import pandas as pd

    if missing := missing_protocols(frame):
        raise UserError(f"table 'mirage' needs protocol {missing[0]}", fix=f"protocols: [{', '.join(PROTOCOLS)}]")
    tables, numbers = [], []
    for axis, title in AXES.items():
        for model, shown in frame.models().items():
            sections = []
            for section, cells in frame.cells.groupby("section", sort=False):
                lines = list(changes(frame, cells[cells["model"] == model], axis))
                part = _section(frame, str(section), model, str(cells["section_title"].iloc[0]), lines)
                sections += [part] * bool(part.rows or part.remarks)
                for line in lines:
                    numbers += [
                        {"axis": axis, "model": shown, "data": part.title, "method": line.title}
                        | {"step": step, **asdict(found), "cells": " ".join(line.cells)}
                        for step, found in zip(("Start", *STEPS, "End"), line.steps, strict=True)
                    ]
            tables.append(_table(frame, f"mirage-{axis}-{model}", f"{title} of {shown}, from start to end", sections))
    return tables, pd.DataFrame(numbers)


def missing_protocols(frame: "SuiteFrame") -> list[str]:
    """The protocols that the steps need and the suite does not have."""
    return [name for name in PROTOCOLS if name not in set(frame.cells["protocol"])]


def changes(frame: "SuiteFrame", cells: "pd.DataFrame", axis: str) -> Iterator[Line]:
    """One per method, under the first prompt template of the suite."""
    import numpy as np
    import pandas as pd

    from reports.stats import resample_means

    cells = cells[cells["template"] == first_template(frame)]
    records = frame.records[(frame.records["axis"] == axis) & frame.records["cell"].isin(cells["cell"])]
    order = records.groupby("record_id")["cluster"].first()
    cluster_R = pd.factorize(order)[0].astype(np.intp)
    weight = np.ones(1)
    if order.empty:
        return
    for row, of_row in cells.groupby("row", sort=False):
        names = tuple(of_row.drop_duplicates("cell").sort_values("seed")["cell"])
        stages = [_scores(records, names, order.index, measure) for measure in STAGES]
        differences = [after - before for before, after in itertools.pairwise(stages)]
        scores, drops = (
            tuple(resample_means(part_SR[:, :, None], cluster_R).estimate(weight) for part_SR in parts)
            for parts in (stages, differences)
        )
        steps = (scores[0], *drops, scores[-1])
        is_reference = bool(of_row["is_reference"].iloc[0])
        yield Line(str(row), str(of_row["title"].iloc[0]), is_reference, steps, scores, names)


def _scores(
    records: "pd.DataFrame", cells: Sequence[str], order: "pd.Index[str]", measure: Measure
) -> "NDArray[np.float64]":
    """Scores of the records of an axis in this order, cells × records."""
    import numpy as np

    protocol, column = measure
    found = records[records["protocol"] == protocol]
    by_cell = [found[found["cell"] == cell].set_index("record_id")[column].reindex(order) for cell in cells]
    return np.stack([scores.to_numpy(dtype=np.float64) for scores in by_cell])


def _section(frame: "SuiteFrame", section: str, model: str, title: str, lines: Sequence[Line]) -> Section:
    rows = [
        TableRow(line.title, tuple(TableEntry(one.value, one.half_width) for one in line.steps), line.is_reference)
        for line in lines
    ]
    missing = empty_rows(frame, section, {line.row for line in lines}, len(STEPS) + 2, model)
    return Section(title, (*rows, *missing), tuple(gap_remarks(frame, section, title, model)))


def _table(frame: "SuiteFrame", name: str, title: str, sections: Sequence[Section]) -> Table:
    columns: Mapping[str, str] = {"Start": "", **dict.fromkeys(STEPS, "Change by"), "End": ""}
    return Table(
        name,
        title,
        f"{suite_shown(frame)}, {seeds_shown(frame)}. {template_shown(frame)}{intervals_shown(frame)} {commits_shown(frame)}",
        tuple(Column(each, group, is_ranked=False) for each, group in columns.items()),
        tuple(sections),
        (*NOTES, *absent_sections(frame, by_model=True)),
    )
