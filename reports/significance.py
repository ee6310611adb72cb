"""Decide which entries of a table may be called best: paired tests between rows, corrected for all comparisons of the table.

The best row of a column is compared with every other one, the second with every row below it, and the largest p-value
counts: a claim that needs all of these differences is as weak as the weakest. That the rows were ordered by the same data
costs nothing: the test of the best against the others, at its two-sided level, is valid after the selection (Hung and
Fithian, Annals of Statistics 47, 2019).

A p-value is that of a permutation test: under the null hypothesis the two methods are exchangeable in each cluster of
records. Where the table also averages seeds or chooses a prompt template, which the permutation does not see, the p-value of
the resampled difference counts if it is larger.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

import numpy as np

from reports.layout import Mark, Section, Table
from reports.stats import Floats

LEVEL = 0.05
PERMUTATIONS = 9999
OPEN_NOTE = "†"
"""Marks a highest value that is not significantly higher than all others."""


Place: TypeAlias = tuple[int, int, int]
"""Section, row and column of an entry."""


@dataclass(frozen=True, slots=True)
class Contest:
    """A ranked column of one section.

    Attributes:
        section, column: numbers in the table.
        values_K: by row, what each cluster adds to the row's value; the same clusters for all rows.
        p_value: a further p-value of the difference between two rows, which counts if it is larger; None if there is none.
    """

    section: int
    column: int
    values_K: Mapping[int, Floats]
    p_value: Callable[[int, int], float | None] = lambda left, right: None


def judged(table: Table, contests: Sequence[Contest]) -> Table:
    """Mark the best and second-best value of each column where tests support it; an undecided best one gets `OPEN_NOTE`."""
    contests = [replace(each, values_K=_present(each, table)) for each in contests]
    ranks = [sorted(each.values_K, key=lambda row: -float(each.values_K[row].sum())) for each in contests]
    claims = [
        (number, mark, _p_of_claim(contest, rows[place:]))
        for number, (contest, rows) in enumerate(zip(contests, ranks, strict=True))
        for place, mark in enumerate((Mark.BEST, Mark.SECOND))
        if len(rows) > place + 1
    ]
    adjusted = holm([p for *_, p in claims])
    marks: dict[Place, Mark] = {}
    is_open: set[Place] = set()
    for (number, mark, _), p in zip(claims, adjusted, strict=True):
        contest, rows = contests[number], ranks[number]
        row = rows[0 if mark is Mark.BEST else 1]
        if p < LEVEL:
            marks[contest.section, row, contest.column] = mark
        elif mark is Mark.BEST:
            printed = {each: table.sections[contest.section].rows[each].entries[contest.column].text for each in rows}
            is_open |= {(contest.section, each, contest.column) for each in rows if printed[each] == printed[row]}
    sections = tuple(_marked(section, number, marks, is_open) for number, section in enumerate(table.sections))
    return replace(table, sections=sections, notes=(*_notes(len(claims), bool(is_open)), *table.notes))


def holm(p_values: Iterable[float]) -> list[float]:
    """P-values adjusted for all of them together (Holm 1979)."""
    given = np.array(list(p_values), dtype=np.float64)
    order = np.argsort(given, kind="stable")
    factors = np.arange(len(given), 0, -1)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(given[order] * factors))
    return [float(p) for p in adjusted]


def permutation_p_values(differences_KM: Floats) -> Floats:
    """Two-sided p-values of M sums over K clusters whose signs are random under the null hypothesis.

    All signs are tried where there are few, else `PERMUTATIONS` random ones besides the observed.
    """
    signs_PK = _signs(len(differences_KM))
    observed_M = np.abs(differences_KM.sum(axis=0))
    tolerance = 1e-12 * (1 + observed_M)
    at_least_M = (np.abs(signs_PK @ differences_KM) >= observed_M - tolerance).sum(axis=0)
    p_M: Floats = at_least_M / len(signs_PK)
    return p_M


def _present(contest: Contest, table: Table) -> dict[int, Floats]:
    """The values of the rows that have a number in the table; a dash neither competes nor counts as a comparison."""
    rows = table.sections[contest.section].rows
    return {
        row: values
        for row, values in contest.values_K.items()
        if not math.isnan(rows[row].entries[contest.column].value)
    }


def _p_of_claim(contest: Contest, rows: Sequence[int]) -> float:
    """That the first of these rows is better than all others."""
    first, others = rows[0], rows[1:]
    differences_KM = np.stack([contest.values_K[first] - contest.values_K[row] for row in others], axis=1)
    further = [p for row in others if (p := contest.p_value(first, row)) is not None]
    return max(float(permutation_p_values(differences_KM).max()), *further, 0.0)


@lru_cache(maxsize=4)
def _signs(clusters: int) -> Floats:
    """Signs by permutation and cluster; the first permutation changes nothing."""
    if 2**clusters <= PERMUTATIONS + 1:
        numbers = np.arange(2**clusters)[:, None] >> np.arange(clusters)
        return 1.0 - 2.0 * (numbers & 1).astype(np.float64)
    drawn_PK = np.random.default_rng(0).choice((-1.0, 1.0), size=(PERMUTATIONS + 1, clusters))
    drawn_PK[0] = 1.0
    return drawn_PK


def _marked(section: Section, number: int, marks: Mapping[Place, Mark], is_open: Set[Place]) -> Section:
    rows = []
    for place, row in enumerate(section.rows):
        entries = tuple(
            replace(
                entry,
                mark=marks.get((number, place, column), entry.mark),
                note=entry.note + OPEN_NOTE * ((number, place, column) in is_open),
            )
            for column, entry in enumerate(row.entries)
        )
        rows.append(replace(row, entries=entries))
    return replace(section, rows=tuple(rows))


def _notes(comparisons: int, is_open: bool) -> tuple[str, ...]:
    if not comparisons:
        return ()
    tested = (
        f"Bold: significantly higher than every other row; underlined: than every row below (paired permutation tests, "
        f"{LEVEL:.0%} for the whole table, Holm over {comparisons} comparisons)."
    )
    return (tested, *[f"{OPEN_NOTE} highest value, but not significantly higher than every other row."] * is_open)
