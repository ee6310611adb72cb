"""Published scores, to show next to measured ones of the same entry, model, dataset, protocol and number of edits."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from harness.errors import UserError, did_you_mean

NUMBERS = Path(__file__).with_name("numbers")
ALL = "all"
"""In place of a model: the number is a Score."""


class Place(NamedTuple):
    """What a published number is about."""

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


@cache
def read(name: str) -> Mapping[Place, Published]:
    """The numbers of a file in `reports/numbers/`; none without a name.

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
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
    return {
        Place(row["label"], row["model"], row["dataset"], row["protocol"], int(row["edits"])): Published(
            float(row["avg"]), row["table"], row["note"]
        )
        for row in rows
    }
