"""A table before it is rendered as LaTeX or terminal text: columns in groups, rows in sections, entries with marks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal

DASH = "–"

MILLION = 1_000_000
"""From here on, numbers are shown with a power of ten."""


class Mark(Enum):
    """How an entry is highlighted."""

    NONE = "none"
    BEST = "best"
    SECOND = "second"


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One number in a table.

    Attributes:
        value: NaN is printed as a dash.
        half_width: half the width of the 95% interval, in the unit of the value; None where none is shown.
        digits: number of decimals.
        notation: `f` for 0.02, `e` for 2e-02.
        note: symbol explained below the table, `†`.
        shown: what is printed in place of the number, `> 100`; the number is still used for sorting.
    """

    value: float = math.nan
    half_width: float | None = None
    digits: int = 2
    notation: Literal["f", "e"] = "f"
    mark: Mark = Mark.NONE
    note: str = ""
    shown: str = ""

    @property
    def text(self) -> str:
        """The number alone, as printed."""
        if self.shown:
            return self.shown
        return DASH if math.isnan(self.value) else f"{self.value:.{self.digits}{self.notation}}"

    @property
    def half_width_text(self) -> str:
        """The half-width without its leading zero (`.02`), or an empty string."""
        if self.half_width is None or math.isnan(self.half_width) or math.isnan(self.value):
            return ""
        text = f"{self.half_width:.{self.digits}{self.notation}}"
        return text.removeprefix("0") if self.notation == "f" else text


def amount(value: float, half_width: float | None = None, digits: int = 2) -> TableEntry:
    """A number with so many decimals, or with a power of ten: above a million (2.7e+15), and where decimals of a number without
    an interval would all be zero (1.6e-06).
    """
    if abs(value) >= MILLION or (half_width is None and 0 < abs(value) < 0.5 * 10.0**-digits):
        return TableEntry(value, half_width, digits=1, notation="e")
    return TableEntry(value, half_width, digits=digits)


@dataclass(frozen=True, slots=True)
class Column:
    """A column; adjacent columns of the same group share a heading above their titles."""

    title: str
    group: str = ""
    is_ranked: bool = True


@dataclass(frozen=True, slots=True)
class TableRow:
    """A row, usually a method. A reference (the unedited model) is set in italics and never ranked."""

    title: str
    entries: tuple[TableEntry, ...]
    is_reference: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """A group of rows under a heading, usually one dataset, with remarks printed below the table."""

    title: str
    rows: tuple[TableRow, ...]
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """A complete table.

    Attributes:
        name: LaTeX label, unique within a report.
        title: what the table shows, in a few words.
        caption: how to read the table and where its numbers come from, in full sentences.
        notes: explanations of the symbols used in entries.
    """

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = ()


def ranked(rows: Sequence[TableRow], columns: Sequence[Column]) -> tuple[TableRow, ...]:
    """Mark the best and second-best value of each ranked column, where higher is better, without a test.

    Values are compared as printed, so ties share a mark. References are not ranked, and a column with fewer than two
    other values has no marks.
    """
    marked = [list(row.entries) for row in rows]
    for index, column in enumerate(columns):
        printed = {
            number: round(row.entries[index].value, row.entries[index].digits)
            for number, row in enumerate(rows)
            if not row.is_reference and not math.isnan(row.entries[index].value)
        }
        if not column.is_ranked or len(printed) < 2:
            continue
        best, second = [*sorted(set(printed.values()), reverse=True), math.nan][:2]
        for number, value in printed.items():
            mark = Mark.BEST if value == best else Mark.SECOND if value == second else Mark.NONE
            marked[number][index] = replace(marked[number][index], mark=mark)
    return tuple(replace(row, entries=tuple(entries)) for row, entries in zip(rows, marked, strict=True))
