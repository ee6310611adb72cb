"""Tables with one column per kind of question: one table per protocol and dataset, methods as rows, models as sections."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from reports.common import (
    commits_shown,
    empty_rows,
    first_template,
    gap_remarks,
    intervals_shown,
    protocol_title,
    remarks_shown,
    samples_shown,
    seeds_shown,
    suite_shown,
    template_shown,
)
from reports.layout import Column, Section, Table, TableEntry, TableRow, ranked

if TYPE_CHECKING:
    import pandas as pd

    from reports.frame import SuiteFrame
    from reports.stats import Estimate, Floats


@dataclass(frozen=True, slots=True)
class Quantity:
    """A column: the heading that it shares with others, and its own. Not a tuple, of which pandas would make two levels."""

    group: str
    title: str


Measure = Callable[["pd.DataFrame", "pd.DataFrame"], "pd.DataFrame"]
"""From the records and the questions of one cell under one protocol to the scores of its units (records or chains of facts):
one column per `Quantity`, NaN where a unit has no such question, and `cluster`, the units that are resampled together."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A method on a model: estimates by column."""

    title: str
    is_reference: bool
    cells: tuple[str, ...]
    found: Mapping[Quantity, "Estimate"]


def tabulate(
    frame: "SuiteFrame",
    name: str,
    title: str,
    measures: Sequence[Measure],
    notes: Sequence[str],
    *,
    is_ranked: bool = True,
) -> tuple[list[Table], "pd.DataFrame"]:
    """One table per protocol and dataset on which the measures find anything, and all numbers with their intervals.

    Args:
        frame: the suite.
        name: of the table.
        title: what it shows.
        measures: their columns follow each other.
        notes: printed below each table.
        is_ranked: whether the best entries of each column are marked.
    """
    import pandas as pd

    tables, numbers = [], []
    for protocol, of_protocol in frame.cells.groupby("protocol", sort=False):
        for section, cells in of_protocol.groupby("section", sort=False):
            data = str(cells["section_title"].iloc[0])
            by_model = {
                shown: list(_lines(frame, str(protocol), cells[cells["model"] == model], measures))
                for model, shown in frame.models().items()
            }
            columns = tuple(
                Column(quantity.title, quantity.group, is_ranked)
                for quantity in dict.fromkeys(
                    key for lines in by_model.values() for line in lines for key in line.found
                )
            )
            if not columns:
                continue
            sections = [_section(frame, str(section), shown, lines, columns) for shown, lines in by_model.items()]
            tables.append(
                Table(
                    f"{name}-{protocol}-{cells['data'].iloc[0]}",
                    f"{title}: {data}, {protocol_title(str(protocol))}",
                    f"{suite_shown(frame)}, {seeds_shown(frame)}. {template_shown(frame)}{intervals_shown(frame)} "
                    f"{commits_shown(frame)}",
                    columns,
                    tuple(sections),
                    (*notes, *remarks_shown(frame), *samples_shown(frame, cells)),
                )
            )
            numbers += [
                {"protocol": protocol, "data": data, "model": shown, "method": line.title}
                | {"axis": quantity.group, "kind": quantity.title, **asdict(found), "cells": " ".join(line.cells)}
                for shown, lines in by_model.items()
                for line in lines
                for quantity, found in line.found.items()
            ]
    return tables, pd.DataFrame(numbers)


def kinds_of(questions: "pd.DataFrame", unit: str, column: str, group: str, rest: str = "") -> "pd.DataFrame":
    """Mean scores of each kind of question by unit, one column per kind in order of appearance.

    Args:
        questions: of one axis.
        unit: `record_id` or `chain`.
        column: `score` or `exact`.
        group: heading of the columns.
        rest: title of questions without a kind.
    """
    import pandas as pd

    kinds = list(dict.fromkeys(questions["kind"]))
    by_kind = {
        Quantity(group, kind or rest): questions[questions["kind"] == kind].groupby(unit)[column].mean()
        for kind in kinds
    }
    return pd.DataFrame(by_kind) if by_kind else pd.DataFrame(index=pd.Index([], name=unit))


def _lines(frame: "SuiteFrame", protocol: str, cells: "pd.DataFrame", measures: Sequence[Measure]) -> Iterator[_Line]:
    """One per method, under the first prompt template of the suite."""
    cells = cells[cells["template"] == first_template(frame)]
    for _, of_row in cells.groupby("row", sort=False):
        names = tuple(of_row.sort_values("seed")["cell"])
        found: dict[Quantity, Estimate] = {}
        for measure in measures:
            by_seed = [
                measure(
                    *(
                        rows[(rows["cell"] == name) & (rows["protocol"] == protocol)]
                        for rows in (frame.records, frame.questions)
                    )
                )
                for name in names
            ]
            found |= _estimates(by_seed)
        if found:
            yield _Line(str(of_row["title"].iloc[0]), bool(of_row["is_reference"].iloc[0]), names, found)


def _estimates(by_seed: Sequence["pd.DataFrame"]) -> dict[Quantity, "Estimate"]:
    """Means over units with intervals; all seeds have the same units."""
    import numpy as np
    import pandas as pd

    from reports.stats import resample_means

    columns: list[Any] = [column for column in by_seed[0].columns if column != "cluster"]
    if not columns or not len(by_seed[0]):
        return {}
    first = by_seed[0].sort_index()
    scores_SRC: Floats = np.stack([units.loc[first.index, columns].to_numpy(dtype=np.float64) for units in by_seed])
    resampled = resample_means(scores_SRC, pd.factorize(first["cluster"])[0].astype(np.intp))
    return {column: resampled.estimate(unit_C) for column, unit_C in zip(columns, np.eye(len(columns)), strict=True)}


def _section(
    frame: "SuiteFrame", section: str, model: str, lines: Sequence[_Line], columns: Sequence[Column]
) -> Section:
    rows = [
        TableRow(
            line.title,
            tuple(
                TableEntry(found.value, found.half_width)
                if (found := line.found.get(Quantity(at.group, at.title)))
                else TableEntry()
                for at in columns
            ),
            line.is_reference,
        )
        for line in lines
    ]
    shown = set(frame.cells.loc[frame.cells["section"] == section, "row"])
    missing = empty_rows(frame, section, shown, len(columns))
    return Section(model, (*ranked(rows, columns), *missing), tuple(gap_remarks(frame, section, model)))
