"""General ability after editing: scores on benchmark tasks, and their change from the unedited model."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.evaluation.capability.scores import FILE, is_perplexity
from harness.evaluation.capability.tasks import FORMS
from harness.registry import register_table
from reports.common import (
    absent_sections,
    commits_shown,
    empty_rows,
    first_template,
    gap_remarks,
    remarks_shown,
    seeds_shown,
    suite_shown,
    template_shown,
)
from reports.layout import Column, Section, Table, TableEntry, TableRow, amount

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from reports.frame import SuiteFrame
    from reports.stats import Estimate, Statistic

NOTES = (
    "After: the score after the last edit. Change: the difference from the unedited model on the same items; of perplexity, more "
    "is worse.",
)
PARTS = ("After", "Change")
KEY = ["task", "metric", "item"]


@dataclass(frozen=True, slots=True)
class _Line:
    """One method on one model and dataset.

    Attributes:
        row: as in `SuiteFrame.cells`.
        is_reference: whether it is the unedited model.
        scores: by task, the unedited model's, the edited one's and the change.
    """

    row: str
    title: str
    is_reference: bool
    scores: Mapping[str, tuple["Estimate", "Estimate", "Estimate"]]
    cells: tuple[str, ...]


@register_table("capability")
def capability(frame: "SuiteFrame") -> tuple[list[Table], "pd.DataFrame"]:
    """Scores on benchmark tasks after the last edit, and their change from the unedited model."""
    import pandas as pd

    items, tables, numbers = _items(frame), [], []
    tasks = {str(task): _metric(str(task), of_task) for task, of_task in items.groupby("task", sort=False)}
    for model, shown in frame.models().items():
        sections = []
        for section, cells in frame.cells.groupby("section", sort=False):
            of_model = cells[(cells["model"] == model) & (cells["template"] == first_template(frame))]
            lines = list(_lines(of_model, items, tasks))
            part = _section(frame, str(section), model, str(cells["section_title"].iloc[0]), lines, list(tasks))
            sections += [part] * bool(part.rows or part.remarks)
            numbers += [row for line in lines for row in _numbers(line, shown, part.title, tasks)]
        tables.append(_table(frame, f"capability-{model}", f"General ability of {shown}", list(tasks), sections))
    return tables, pd.DataFrame(numbers)


def _items(frame: "SuiteFrame") -> "pd.DataFrame":
    """Scores of the items of all cells.

    Raises:
        UserError: if no cell has any.
    """
    import pandas as pd

    from harness.store.store import Store

    files = {name: Store(frame.store).cell(name).path / FILE for name in dict.fromkeys(frame.cells["cell"])}
    found = [pd.read_parquet(file).assign(cell=name) for name, file in files.items() if file.is_file()]
    if not found:
        raise UserError(
            "table 'capability' needs benchmark tasks", fix=f"capability: [{', '.join(FORMS)}] in the suite"
        )
    return pd.concat(found, ignore_index=True)


def _metric(task: str, items: "pd.DataFrame") -> str:
    """The metric of a task that is shown: the task's own, or the first one that lm-eval reports."""
    return FORMS[task].metric if task in FORMS else str(items["metric"].iloc[0])


def _lines(cells: "pd.DataFrame", items: "pd.DataFrame", tasks: Mapping[str, str]) -> Iterator[_Line]:
    """One per method."""
    for row, of_row in cells.groupby("row", sort=False):
        names = tuple(of_row.drop_duplicates("cell").sort_values("seed")["cell"])
        of_method = items[items["cell"].isin(names)]
        scores = {}
        for task, metric in tasks.items():
            shown = of_method[(of_method["task"] == task) & (of_method["metric"] == metric)]
            if (shown["edits"] > 0).any():
                scores[task] = _estimates(shown, names, metric)
        yield _Line(str(row), str(of_row["title"].iloc[0]), bool(of_row["is_reference"].iloc[0]), scores, names)


def _estimates(items: "pd.DataFrame", cells: Sequence[str], metric: str) -> tuple["Estimate", "Estimate", "Estimate"]:
    """Before, after and change of one task, with intervals over its items."""
    import numpy as np

    from reports.stats import resample

    by_seed, count = [], 0
    for cell in cells:
        of_cell = items[items["cell"] == cell]
        last = of_cell["edits"].max()
        sides = [of_cell[of_cell["edits"] == edits].set_index(KEY).sort_index() for edits in (0, last)]
        values_RC = np.stack([side["value"].to_numpy(np.float64) for side in sides], axis=1)
        weights_RC = np.stack([side["weight"].to_numpy(np.float64) for side in sides], axis=1)
        by_seed.append(_statistic(values_RC, weights_RC, metric))
        count = len(values_RC)
    found = resample(by_seed, [count])
    before, after, change = (found.estimate(np.array(weights)) for weights in ((1.0, 0.0), (0.0, 1.0), (-1.0, 1.0)))
    return before, after, change


def _statistic(values_RC: "np.ndarray", weights_RC: "np.ndarray", metric: str) -> "Statistic":
    """The metric over drawn items; a perplexity is that of all their words together."""
    import numpy as np

    from reports.stats import ratios

    ratio = ratios(values_RC, weights_RC)
    return (lambda drawn_BR: np.exp(-ratio(drawn_BR))) if is_perplexity(metric) else ratio


def _section(
    frame: "SuiteFrame", section: str, model: str, title: str, lines: Sequence[_Line], tasks: Sequence[str]
) -> Section:
    rows = []
    for line in lines:
        entries: list[TableEntry] = []
        for task in tasks:
            _, after, change = line.scores.get(task, (None, None, None))
            entries += [
                amount(after.value) if after else TableEntry(),
                amount(change.value, change.half_width) if change and not line.is_reference else TableEntry(),
            ]
        rows.append(TableRow(line.title, tuple(entries), line.is_reference))
    missing = empty_rows(frame, section, {line.row for line in lines}, len(PARTS) * len(tasks), model)
    return Section(title, (*rows, *missing), tuple(gap_remarks(frame, section, title, model)))


def _numbers(line: _Line, model: str, data: str, tasks: Mapping[str, str]) -> Iterator[dict[str, object]]:
    for task, estimates in line.scores.items():
        for part, found in zip(("before", "after", "change"), estimates, strict=True):
            yield {
                "data": data,
                "method": line.title,
                "model": model,
                **{"task": task, "metric": tasks[task], "part": part, **asdict(found), "cells": " ".join(line.cells)},
            }


def _table(frame: "SuiteFrame", name: str, title: str, tasks: Sequence[str], sections: Sequence[Section]) -> Table:
    from reports.stats import RESAMPLES

    over = "seeds and items" if frame.cells["seed"].nunique() > 1 else "items"
    titles = [FORMS[task].title if task in FORMS else task for task in tasks]
    caption = (
        f"{suite_shown(frame)}, {seeds_shown(frame)}. {template_shown(frame)}"
        f"Benchmark tasks asked through lm-eval. ±: half the width of the 95% bootstrap confidence interval over "
        f"{over} (BCa, {RESAMPLES:,} resamples). {commits_shown(frame)}"
    )
    columns = tuple(Column(part, group, is_ranked=False) for group in titles for part in PARTS)
    notes = (*NOTES, *remarks_shown(frame), *absent_sections(frame, by_model=True))
    return Table(name, title, caption, columns, tuple(sections), notes)
