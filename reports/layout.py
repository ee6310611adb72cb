"""What a table is before it is LaTeX or terminal text: columns in groups, rows in sections, entries with marks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

import numpy as np

DASH = "–"


class Mark(Enum):
    """How an entry stands out."""

    NONE = "none"
    BEST = "best"
    SECOND = "second"


@dataclass(frozen=True, slots=True)
class Entry:
    """A number of a table.

    Attributes:
        value: NaN is printed as a dash.
        half_width: half of the 95 % interval, in the unit of the value; None where none is shown.
        digits: printed after the point.
        notation: `f` for 0.02, `e` for 2e-02.
        note: symbol explained under the table, `†`.
    """

    value: float = np.nan
    half_width: float | None = None
    digits: int = 2
    notation: Literal["f", "e"] = "f"
    mark: Mark = Mark.NONE
    note: str = ""

    @property
    def text(self) -> str:
        """The number alone, as printed."""
        return DASH if np.isnan(self.value) else f"{self.value:.{self.digits}{self.notation}}"

    @property
    def half_width_text(self) -> str:
        """Half width without the leading zero (`.02`), or nothing."""
        if self.half_width is None or np.isnan(self.half_width) or np.isnan(self.value):
            return ""
        return f"{self.half_width:.{self.digits}f}".removeprefix("0")


@dataclass(frozen=True, slots=True)
class Column:
    """A column; neighbours with one group share a heading above their titles."""

    title: str
    group: str = ""
    is_ranked: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """A method. The reference (the unedited model) is shown apart and never ranked."""

    title: str
    entries: tuple[Entry, ...]
    is_reference: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """The rows of one data set, with remarks printed under the table."""

    title: str
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A whole table.

    Attributes:
        name: label in LaTeX, unique within a report.
        title: what it shows, in a few words.
        caption: how to read it and where it comes from, in sentences.
        notes: explanations of the symbols used in entries.
    """

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()


def ranked(rows: Sequence[Row], columns: Sequence[Column]) -> tuple[Row, ...]:
    """Mark the best and second best printed value of each ranked column; higher is better and ties share a mark.

    References and columns with fewer than two methods get no mark.
    """
    marked = [list(row.entries) for row in rows]
    for index, column in enumerate(columns):
        printed = {
            number: round(row.entries[index].value, row.entries[index].digits)
            for number, row in enumerate(rows)
            if not row.is_reference and not np.isnan(row.entries[index].value)
        }
        if not column.is_ranked or len(printed) < 2:
            continue
        best, second = [*sorted(set(printed.values()), reverse=True), np.nan][:2]
        for number, value in printed.items():
            mark = Mark.BEST if value == best else Mark.SECOND if value == second else Mark.NONE
            marked[number][index] = replace(marked[number][index], mark=mark)
    return tuple(replace(row, entries=tuple(entries)) for row, entries in zip(rows, marked, strict=True))
