"""Published scores and costs, to show next to measured ones of the same entry and model."""

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from harness.errors import UserError, did_you_mean
from reports.layout import Column, TableEntry

if TYPE_CHECKING:
    from reports.frame import SuiteFrame

NUMBERS = Path(__file__).with_name("numbers")
ALL = "all"
"""In place of a model: the number is a Score."""
TOTAL = "total"
"""In place of a model: the cost is that of all models together."""
TITLE = "paper"
"""Title of columns with published numbers."""


class Place(NamedTuple):
    """The entry, model, dataset and protocol of a published score."""

    label: str
    model: str
    dataset: str
    protocol: str
    edits: int


@dataclass(frozen=True, slots=True)
class Published:
    """An Avg or Score as printed, with the table that it is from and what is known to be wrong with it."""

    avg: float
    table: str
    note: str


class CostPlace(NamedTuple):
    """The entry, model and quantity of a published cost; quantities are those of the cost tables."""

    label: str
    model: str
    quantity: str


@dataclass(frozen=True, slots=True)
class PublishedCost:
    """A cost as printed, infinite if printed as `> 100`, with the table that it is from."""

    value: float
    table: str


@cache
def read(name: str) -> Mapping[Place, Published]:
    """The scores of a file in `reports/numbers/`; none without a name.

    Raises:
        UserError: if there is no such file.
    """
    if not name:
        return {}
    file, known = NUMBERS / f"{name}.csv", [each.stem for each in NUMBERS.glob("*.csv")]
    if not file.is_file():
        raise UserError(
            f"no published numbers '{name}'{did_you_mean(name, known)}", fix=f"published: {min(known)}, or leave it out"
        )
    return {
        Place(row["label"], row["model"], row["dataset"], row["protocol"], int(row["edits"])): Published(
            float(row["avg"]), row["table"], row["note"]
        )
        for row in _rows(file)
    }


def models_of(known: Mapping[Place, Published], score: Place) -> set[str]:
    """The models that a published Score is over: those of the same table, dataset, protocol and number of edits."""
    table = known[score].table
    return {place.model for place, found in known.items() if place[2:] == score[2:] and found.table == table} - {ALL}


@cache
def read_costs(name: str) -> Mapping[CostPlace, PublishedCost]:
    """The costs of a file in `reports/numbers/costs/`; none without a name or for numbers without costs."""
    file = NUMBERS / "costs" / f"{name}.csv"
    if not file.is_file():
        return {}
    return {
        CostPlace(row["label"], row["model"], row["quantity"]): PublishedCost(float(row["value"]), row["table"])
        for row in _rows(file)
    }


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(line for line in lines if not line.startswith("#")))


@dataclass(frozen=True, slots=True)
class PaperCosts:
    """Published costs next to the measured ones of a suite: which columns there are, and their entries.

    Attributes:
        known: all published costs, none if the suite names no published numbers.
        labels: labels of the suite's cells.
    """

    known: Mapping[CostPlace, PublishedCost]
    labels: frozenset[str]

    @classmethod
    def of(cls, frame: "SuiteFrame") -> "PaperCosts":
        """The published costs of a suite; totals only if they are over the same models."""
        known = read_costs(frame.manifest.published)
        if {place.model for place in known} != {*frame.models(), TOTAL}:
            known = {place: cost for place, cost in known.items() if place.model != TOTAL}
        return cls(known, frozenset(frame.cells["label"]))

    def covers(self, models: Iterable[str], quantity: str) -> bool:
        """Whether there is a published number for one of these models, so that a table has a column for it."""
        return any(CostPlace(label, model, quantity) in self.known for label in self.labels for model in models)

    def entry(self, label: str, model: str, quantity: str, digits: int = 2) -> TableEntry:
        """The entry of a column, a dash where nothing is published."""
        from reports.costs import MANY_TIMES

        found = self.known.get(CostPlace(label, model, quantity))
        if found is None:
            return TableEntry()
        if math.isinf(found.value):
            return TableEntry(MANY_TIMES, shown=f"> {MANY_TIMES}")
        return TableEntry(found.value, digits=digits)

    def notes(self, columns: Iterable[Column], quantities: Iterable[str]) -> list[str]:
        """Where the numbers are from, if a column shows them."""
        wanted = set(quantities)
        tables = sorted({cost.table for place, cost in self.known.items() if place.quantity in wanted})
        is_shown = any(column.title == TITLE for column in columns)
        return [f"{TITLE}: as printed in the OnceEdit paper (arXiv 2506.00817), Table {', '.join(tables)}."] * is_shown
