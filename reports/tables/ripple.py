"""Consequences of edits, and what they must not change, by kind of question."""

from typing import TYPE_CHECKING

from harness.registry import register_table
from reports.by_kind import Quantity, kinds_of, tabulate

if TYPE_CHECKING:
    import pandas as pd

    from reports.frame import SuiteFrame
    from reports.layout import Table

AXES = {
    "rel": ("Edit", "Rel"),
    "gen": ("Generality", "Rephrase"),
    "port": ("Portability", "One hop"),
    "loc": ("Locality", "Loc"),
    "loc_unrelated": ("Locality", "Unrelated"),
    "robust": ("Robustness", "Robust"),
}
"""Heading of an axis, and what its questions without a kind are called."""

NOTES = (
    "Each column is a mean over records of the mean over the record's questions of the kind, as the dataset names it. All: the "
    "axis as a whole, with every question of a record counted once.",
    "Locality compares with the unedited model; all other columns with the answer that the edit implies.",
)


@register_table("ripple")
def ripple(frame: "SuiteFrame") -> tuple[list["Table"], "pd.DataFrame"]:
    """Generality, portability, locality and robustness by kind of question."""
    return tabulate(frame, "ripple", "Ripple effects", [_by_record], NOTES)


def _by_record(records: "pd.DataFrame", questions: "pd.DataFrame") -> "pd.DataFrame":
    """Scores of the records on each axis and on each kind of its questions."""
    import pandas as pd

    parts = []
    for axis, (group, plain) in AXES.items():
        whole = records[records["axis"] == axis].set_index("record_id")["score"]
        asked = questions[questions["axis"] == axis]
        kinds = kinds_of(asked, "record_id", "score", group, plain)
        if len(kinds.columns) > 1:
            kinds[Quantity(group, "All")] = whole
        if not len(kinds.columns) and len(whole):
            kinds = whole.to_frame(Quantity(group, plain))
        parts.append(kinds)
    units = pd.concat(parts, axis=1)
    units["cluster"] = records.drop_duplicates("record_id").set_index("record_id")["cluster"]
    return units
