"""How much of an edit is lost in another form or after a challenge: paired changes, and answers by option."""

from dataclasses import replace
from typing import TYPE_CHECKING, cast

from harness.errors import UserError
from harness.registry import register_table
from reports.by_kind import Quantity, kinds_of, tabulate

if TYPE_CHECKING:
    import pandas as pd

    from reports.frame import SuiteFrame
    from reports.layout import Table

AXES = {"gen": ("Change in other form", "Rephrase"), "robust": ("Change under pressure", "Pressure")}
"""Heading of an axis, and what its questions without a kind are called."""

OPTIONS = ("Multiple choice", "Yes", "No", "Doubt", "Sure")
"""Kinds of questions answered with one of a few options, which chance or constant agreement gets right as well.

A difference from a free answer's score, whose chance level is about 0, would not be a loss.
"""

DISTRACTED = {"natural": "natural_distracted"}
"""By protocol, the one that asks the same questions after an unrelated sentence."""

NOTES = (
    "Edit: score on the prompts of the edits. Change: score on the questions of a kind minus the score on the prompts of the same "
    "edits, so intervals are paired; below 0 something is lost. Records without such a question do not count. Prefix: the edit's "
    "own prompt after an unrelated sentence. A method that edits little has little to lose: read Edit first.",
    "Right option: share of questions answered exactly with the right one of a few options. Not a change, because chance gets some "
    "right: a quarter of four choices, half of yes or no; a model that always says yes has 1 in Yes, Doubt and Sure and 0 in No. "
    "Compare with the unedited model.",
)


@register_table("robustness")
def robustness(frame: "SuiteFrame") -> tuple[list["Table"], "pd.DataFrame"]:
    """How much of edits is lost in other forms of the question, after a distracting sentence, and under doubt."""
    there = set(frame.cells["protocol"])
    pairs = {plain: distracted for plain, distracted in DISTRACTED.items() if {plain, distracted} <= there}
    shown = replace(frame, cells=frame.cells[~frame.cells["protocol"].isin(pairs.values())])

    def measured(records: "pd.DataFrame", questions: "pd.DataFrame") -> "pd.DataFrame":
        protocol = pairs.get(_only(records, "protocol"), "")
        is_distracted = (frame.records["protocol"] == protocol) & (frame.records["cell"] == _only(records, "cell"))
        return changes(records, questions, frame.records[is_distracted])

    tables, numbers = tabulate(shown, "robustness", "Robustness", [measured], NOTES, is_ranked=False)
    if not tables:
        raise UserError(
            "table 'robustness' needs other forms of the edits' questions",
            fix="datasets: [halluedit], or protocols: [natural, natural_distracted]",
        )
    return tables, numbers


def changes(records: "pd.DataFrame", questions: "pd.DataFrame", distracted: "pd.DataFrame") -> "pd.DataFrame":
    """Score of each edit, the differences of its other questions' scores from it, and its right answers by option.

    Args:
        records: of one cell under one protocol.
        questions: the same by question, of axes with kinds.
        distracted: records of the same cell under the protocol with a distracting prefix; without rows if it was not used.
    """
    import pandas as pd

    edit = _scores(records, "rel")
    found: dict[Quantity, pd.Series[float]] = {}
    options: dict[Quantity, pd.Series[float]] = {}
    for axis, (group, plain) in AXES.items():
        asked = questions[questions["axis"] == axis]
        is_option = asked["kind"].isin(OPTIONS)
        free = _columns(kinds_of(asked[~is_option], "record_id", "score", group, plain))
        if asked.empty and (records["axis"] == axis).any():
            free = {Quantity(group, plain): _scores(records, axis)}
        found |= {quantity: score - edit for quantity, score in free.items()}
        options |= _columns(kinds_of(asked[is_option], "record_id", "exact", "Right option"))
    if len(distracted):
        found[Quantity(AXES["robust"][0], "Prefix")] = _scores(distracted, "rel") - edit
    found |= options
    if not found:
        return pd.DataFrame()
    units = pd.DataFrame({Quantity("", "Edit"): edit, **found})
    units["cluster"] = records.drop_duplicates("record_id").set_index("record_id")["cluster"]
    return units.loc[edit.index]


def _columns(kinds: "pd.DataFrame") -> "dict[Quantity, pd.Series[float]]":
    return {quantity: kinds[quantity] for quantity in cast("list[Quantity]", list(kinds.columns))}


def _scores(records: "pd.DataFrame", axis: str) -> "pd.Series[float]":
    return records[records["axis"] == axis].set_index("record_id")["score"]


def _only(records: "pd.DataFrame", column: str) -> str:
    """The value that all rows share; empty without rows."""
    return str(records[column].iloc[0]) if len(records) else ""
