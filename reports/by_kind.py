"""Tables with one column per kind of question: one table per protocol and dataset, methods as rows, models as sections."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from reports.common import (
    absent_sections,
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
from reports.layout import Column, Section, Table, TableEntry, TableRow

if TYPE_CHECKING:
    import pandas as pd

    from reports.frame import SuiteFrame
    from reports.significance import Contest
    from reports.stats import Estimate, Floats, Resampled


@dataclass(frozen=True, slots=True)
class Quantity:
    """A column: the heading that it shares with others, and its own. Not a tuple, of which pandas would make two levels.

    Attributes:
        is_ranked: whether methods are compared; not if each is asked about units of its own.
    """

    group: str
    title: str
    is_ranked: bool = field(default=True, compare=False)


Measure = Callable[["pd.DataFrame", "pd.DataFrame"], "pd.DataFrame"]
"""From the records and the questions of one cell under one protocol to the scores of its units (records or chains of facts):
one column per `Quantity`, NaN where a unit has no such question, and `cluster`, the units that are resampled together."""


@dataclass(frozen=True, slots=True)
class _Score:
    """A column of a method on a model.

    Attributes:
        n: number of units that have it.
        shares_K: what each cluster of units adds to it; the same clusters for all methods.
        resampled, weights_C: the difference between two methods is that of these weighted sums.
        has_seeds: whether seeds add to the variation between units.
    """

    estimate: "Estimate"
    n: int
    shares_K: "Floats"
    resampled: "Resampled"
    weights_C: "Floats"
    has_seeds: bool

    def p_value(self, other: "_Score") -> float | None:
        """P-value of the resampled difference, where seeds are averaged."""
        if not (self.has_seeds or other.has_seeds):
            return None
        return self.resampled.p_value(other.resampled, self.weights_C)


@dataclass(frozen=True, slots=True)
class _Line:
    """A method on a model: scores by column."""

    row: str
    title: str
    is_reference: bool
    cells: tuple[str, ...]
    found: Mapping[Quantity, _Score]


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

    from reports.significance import judged

    tables, numbers = [], []
    for protocol, of_protocol in frame.cells.groupby("protocol", sort=False):
        for section, cells in of_protocol.groupby("section", sort=False):
            data = str(cells["section_title"].iloc[0])
            by_model = {
                model: list(_lines(frame, str(protocol), cells[cells["model"] == model], measures))
                for model in frame.models()
            }
            quantities = list(dict.fromkeys(key for lines in by_model.values() for line in lines for key in line.found))
            if not quantities:
                continue
            parts = {
                model: part
                for model, lines in by_model.items()
                if (part := _section(frame, str(section), model, lines, quantities)).rows or part.remarks
            }
            table = Table(
                f"{name}-{protocol}-{cells['data'].iloc[0]}",
                f"{title}: {data}, {protocol_title(str(protocol))}",
                f"{suite_shown(frame)}, {seeds_shown(frame)}. {template_shown(frame)}{intervals_shown(frame)} "
                f"{commits_shown(frame)}",
                tuple(Column(each.title, each.group, is_ranked and each.is_ranked) for each in quantities),
                tuple(parts.values()),
                (
                    *(*notes, _counts(by_model.values(), quantities)),
                    *(*remarks_shown(frame), *samples_shown(frame, cells), *absent_sections(frame, by_model=True)),
                ),
            )
            contests = [
                _contest(number, column, quantity, by_model[model])
                for number, model in enumerate(parts)
                for column, quantity in enumerate(quantities)
                if table.columns[column].is_ranked
            ]
            tables.append(judged(table, contests))
            numbers += [
                {"protocol": protocol, "data": data, "model": frame.models()[model], "method": line.title}
                | {"axis": quantity.group, "kind": quantity.title, **asdict(found.estimate), "n": found.n}
                | {"cells": " ".join(line.cells)}
                for model, lines in by_model.items()
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
    rows = {str(row): same.sort_values("seed") for row, same in cells.groupby("row", sort=False)}
    found: dict[str, dict[Quantity, _Score]] = {row: {} for row in rows}
    for measure in measures:
        by_row = {
            row: [
                measure(
                    *(
                        answers[(answers["cell"] == name) & (answers["protocol"] == protocol)]
                        for answers in (frame.records, frame.questions)
                    )
                )
                for name in same["cell"]
            ]
            for row, same in rows.items()
        }
        for row, scores in _scores(by_row):
            found[row] |= scores
    for row, same in rows.items():
        if found[row]:
            names = tuple(same["cell"])
            yield _Line(row, str(same["title"].iloc[0]), bool(same["is_reference"].iloc[0]), names, found[row])


def _scores(by_row: Mapping[str, Sequence["pd.DataFrame"]]) -> Iterator[tuple[str, dict[Quantity, _Score]]]:
    """The columns of a measure by row, from the units of each seed; all seeds and rows have the same units."""
    import numpy as np
    import pandas as pd

    from reports.stats import resample_means, shares

    asked = {row: by_seed for row, by_seed in by_row.items() if len(by_seed[0]) and len(by_seed[0].columns) > 1}
    if not asked:
        return
    clusters = pd.concat([units["cluster"] for by_seed in asked.values() for units in by_seed]).groupby(level=0).first()
    cluster_R = pd.factorize(clusters)[0].astype(np.intp)
    for number, (row, by_seed) in enumerate(asked.items()):
        columns: list[Any] = [column for column in by_seed[0].columns if column != "cluster"]
        scores_SRC: Floats = np.stack(
            [units.loc[:, columns].reindex(clusters.index).to_numpy(dtype=np.float64) for units in by_seed]
        )
        resampled, shares_KC = resample_means(scores_SRC, cluster_R, method=number), shares(scores_SRC, cluster_R)
        n_C = (~np.isnan(scores_SRC)).any(axis=0).sum(axis=0)
        found = {
            column: _Score(resampled.estimate(unit_C), int(n), shares_K, resampled, unit_C, len(by_seed) > 1)
            for column, n, shares_K, unit_C in zip(columns, n_C, shares_KC.T, np.eye(len(columns)), strict=True)
        }
        yield row, found


def _contest(section: int, column: int, quantity: Quantity, lines: Sequence[_Line]) -> "Contest":
    """A ranked column of a model, of all methods that have it."""
    from reports.significance import Contest

    able = {
        row: found
        for row, line in enumerate(lines)
        if not line.is_reference and (found := line.found.get(quantity)) and found.n
    }
    values = {row: found.shares_K for row, found in able.items()}
    return Contest(section, column, values, lambda left, right: able[left].p_value(able[right]))


def _counts(by_model: Iterable[Sequence[_Line]], quantities: Sequence[Quantity]) -> str:
    """How many records or chains each column is a mean over, as a sentence, with a range where that differs by row."""
    lines = [line for of_model in by_model for line in of_model]
    by_group: dict[str, list[str]] = {}
    for each in quantities:
        n = sorted({line.found[each].n for line in lines if each in line.found})
        by_group.setdefault(each.group, []).append(f"{each.title} {'–'.join(map(str, dict.fromkeys([n[0], n[-1]])))}")
    return f"n: {'; '.join((group and f'{group}: ') + ', '.join(shown) for group, shown in by_group.items())}."


def _section(
    frame: "SuiteFrame", section: str, model: str, lines: Sequence[_Line], quantities: Sequence[Quantity]
) -> Section:
    rows = [
        TableRow(
            line.title,
            tuple(
                TableEntry(found.estimate.value, found.estimate.half_width)
                if (found := line.found.get(quantity))
                else TableEntry()
                for quantity in quantities
            ),
            line.is_reference,
        )
        for line in lines
    ]
    missing = empty_rows(frame, section, {line.row for line in lines}, len(quantities), model)
    data = str(frame.cells.loc[frame.cells["section"] == section, "section_title"].iloc[0])
    return Section(frame.models()[model], (*rows, *missing), tuple(gap_remarks(frame, section, data, model)))
