"""The table `robustness` against differences taken by hand."""

import numpy as np
import pandas as pd
import pytest

from harness import registry
from harness.errors import UserError
from reports.by_kind import Quantity
from reports.frame import load_suite
from reports.tables.robustness import changes
from tests.helpers import fake_store


def rows(*content):
    columns = ["axis", "record_id", "kind", "score"]
    found = pd.DataFrame([dict(zip(columns, row, strict=True)) | {"cluster": row[1]} for row in content])
    return found.assign(exact=(found["score"] == 1).astype(float))


def test_a_change_is_the_mean_of_the_kind_minus_the_score_of_the_same_edit():
    questions = rows(
        *[("gen", "a", "", 0.5), ("gen", "a", "Reversed", 1.0), ("gen", "a", "Reversed", 0.0)],
        *[("gen", "b", "", 1.0), ("robust", "a", "Rumour", 0.0), ("robust", "b", "Rumour", 0.0)],
    )
    records = rows(("rel", "a", "", 1.0), ("rel", "b", "", 0.0), ("rel", "c", "", 1.0))
    distracted = rows(("rel", "b", "", 1.0), ("rel", "c", "", 0.0), ("rel", "a", "", 1.0))
    found = changes(records, questions, distracted)

    assert list(found.index) == ["a", "b", "c"]
    for quantity, wanted in (
        (Quantity("", "Edit"), [1, 0, 1]),
        (Quantity("Change in other form", "Rephrase"), [-0.5, 1, np.nan]),
        (Quantity("Change in other form", "Reversed"), [-0.5, np.nan, np.nan]),
        (Quantity("Change under pressure", "Rumour"), [-1, 0, np.nan]),
        (Quantity("Change under pressure", "Prefix"), [0, 1, -1]),
    ):
        assert found[quantity].to_numpy(dtype=float) == pytest.approx(np.array(wanted, dtype=float), nan_ok=True)


def test_a_coin_has_the_same_numbers_under_options_however_many_edits_are_made():
    """A change would be 0 for an editor that makes half of the edits, and a loss of a half for one that makes all."""
    names = [f"r{number}" for number in range(8)]
    coin = rows(*(("robust", name, "Doubt", float(number % 2)) for number, name in enumerate(names)))
    partly = rows(*(("gen", name, "Multiple choice", 0.5) for name in names))
    found = [
        changes(rows(*(("rel", name, "", share) for name in names)), pd.concat([coin, partly]), coin[:0])
        for share in (0.5, 1.0)
    ]

    for each in found:
        assert each[Quantity("Right option", "Doubt")].mean() == 0.5
        assert each[Quantity("Right option", "Multiple choice")].mean() == 0, "half of the words is no option"
        assert {quantity.group for quantity in each.columns if quantity != "cluster"} == {"", "Right option"}


def test_intervals_are_those_of_paired_differences_and_narrower_than_unpaired_ones(fake, monkeypatch):
    made = fake_store.fake_records

    def as_good_behind_a_prefix(*args):
        """Rephrases are as good as the edits themselves, record by record, except for the first ten."""
        found = made(*args).set_index(["protocol", "axis", "record_id"])
        for protocol in fake_store.PROTOCOLS:
            edits = found.loc[(protocol, "reliability"), "score"].to_numpy(copy=True)
            edits[:10] = 0
            found.loc[(protocol, "generality"), "score"] = edits
        return found.reset_index()

    monkeypatch.setattr(fake_store, "PROTOCOLS", ("natural", "natural_distracted"))
    monkeypatch.setattr(fake_store, "fake_records", as_good_behind_a_prefix)
    fake_store._scored.cache_clear()
    fake.write_suite(methods=("none", "ft-l"), models=("tiny/llama",), data=("zsre",))
    frame = load_suite(fake.root, "main_table", "mini")
    fake_store._scored.cache_clear()
    (table,), numbers = registry.tables.get("robustness")(frame)

    assert table.name == "robustness-natural-zsre", "the distracted answers are a column, not a table"
    assert not any(column.is_ranked for column in table.columns)
    of_method = frame.records[frame.records["cell"].str.startswith("ft-l")]
    scores = {
        key: same.set_index("record_id")["score"] for key, same in of_method.groupby(["protocol", "axis"], sort=False)
    }
    edit, found = scores["natural", "rel"], numbers[numbers["method"] == "FT-L"].set_index("kind")
    for kind, other in (
        ("Rephrase", scores["natural", "gen"]),
        ("Prefix", scores["natural_distracted", "rel"]),
    ):
        assert found.loc[kind, "value"] == pytest.approx((other - edit).mean())
    paired = found.loc["Rephrase", "high"] - found.loc["Rephrase", "low"]
    assert paired < found.loc["Edit", "high"] - found.loc["Edit", "low"]


def test_a_suite_without_other_questions_is_told_what_to_add(fake, monkeypatch):
    made = fake_store.fake_records
    monkeypatch.setattr(
        fake_store, "fake_records", lambda *args: made(*args).query("axis in ['reliability', 'locality']")
    )
    fake_store._scored.cache_clear()
    fake.write_suite(methods=("none",), models=("tiny/llama",), data=("zsre",))
    fake_store._scored.cache_clear()
    with pytest.raises(UserError, match=r"needs other forms of the edits' questions → datasets: \[halluedit\]"):
        registry.tables.get("robustness")(load_suite(fake.root, "main_table", "mini"))
