"""The tables `ripple` and `multihop` against means taken by hand."""

import numpy as np
import pandas as pd
import pytest

from harness import registry
from harness.errors import UserError
from reports.by_kind import Quantity
from reports.frame import load_suite
from reports.layout import DASH, Mark
from reports.significance import OPEN_NOTE
from reports.tables.multihop import _by_chain
from tests.helpers import fake_store

KINDS = ("Reasoning", "Subject Aliasing")


@pytest.fixture
def kinds(monkeypatch):
    """Give half of the records' rephrases one kind and half another."""
    made = fake_store.fake_records

    def with_kinds(*args):
        rows = made(*args)
        is_asked = rows["axis"] == "generality"
        number = rows["record_id"].str[1:].astype(int)
        rows["kind"] = np.where(is_asked, np.where(number % 2 == 0, *KINDS), "")
        return rows.assign(chain="")

    monkeypatch.setattr(fake_store, "fake_records", with_kinds)
    fake_store._scored.cache_clear()
    yield
    fake_store._scored.cache_clear()


def test_a_kind_is_the_mean_over_the_records_that_have_it(fake, kinds):
    fake.write_suite(methods=("none", "ft-l"), models=("tiny/llama",), data=("zsre",), seeds=(0, 1))
    frame = load_suite(fake.root, "main_table", "mini")
    tables, numbers = registry.tables.get("ripple")(frame)

    cells = set(frame.cells.loc[frame.cells["title"] == "FT-L", "cell"])
    asked = frame.questions[frame.questions["cell"].isin(cells) & (frame.questions["protocol"] == "generation")]
    shown = numbers[(numbers["method"] == "FT-L") & (numbers["protocol"] == "generation")].set_index("kind")["value"]
    for kind in KINDS:
        assert shown[kind] == pytest.approx(asked.loc[asked["kind"] == kind, "score"].mean())
    assert shown["All"] == pytest.approx(asked["score"].mean())
    assert [table.name for table in tables] == [
        f"ripple-{each}-zsre" for each in dict.fromkeys(frame.cells["protocol"])
    ]
    titles = [(column.group, column.title) for column in tables[0].columns]
    assert [title for group, title in titles if group == "Generality"] == [*KINDS, "All"]


def test_cells_without_kinds_have_one_column_per_axis(fake):
    fake.write_suite(methods=("none", "ft-l"), models=("tiny/llama",), data=("zsre",))
    (table, *_), numbers = registry.tables.get("ripple")(load_suite(fake.root, "main_table", "mini"))

    assert {"Rel", "Rephrase", "Loc"} <= {column.title for column in table.columns}
    assert numbers["value"].notna().all()


def test_the_number_of_records_of_each_column_is_below_the_table(fake, kinds):
    fake.write_suite(methods=("none", "ft-l"), models=("tiny/llama",), data=("zsre",))
    (table, *_), numbers = registry.tables.get("ripple")(load_suite(fake.root, "main_table", "mini"))

    counts = "n: Edit: Rel 50; Generality: Reasoning 25, Subject Aliasing 25, All 50; Locality: Loc 50, Unrelated 50."
    assert counts in table.notes
    assert set(numbers.set_index("kind").loc["Reasoning", "n"]) == {25}


def test_bold_entries_are_those_that_a_paired_test_supports(fake, kinds):
    """One method is clearly better than another on edits, and hardly on rephrases."""
    for method, chances in (
        ("none", {"reliability": 1.0, "generality": 1.0, "locality": 1.0}),
        ("ft-l", {"reliability": 0.5, "generality": 0.5, "locality": 0.9}),
        ("onceedit", {"reliability": 0.95, "generality": 0.55, "locality": 0.9}),
    ):
        fake.write_cell(method, "tiny/llama", "zsre", chances=chances)
    fake.write_manifest()
    (table, *_), _ = registry.tables.get("ripple")(load_suite(fake.root, "main_table", "mini"))

    unedited, *methods = table.sections[0].rows
    assert {entry.mark for entry in unedited.entries} == {Mark.NONE}
    titles = [column.title for column in table.columns]
    for title, wanted in (("Rel", Mark.BEST), ("Reasoning", Mark.NONE), ("All", Mark.NONE)):
        entries = [row.entries[titles.index(title)] for row in methods]
        best = max(entries, key=lambda entry: entry.value)
        assert best.mark is wanted
        assert (best.note == OPEN_NOTE) == (wanted is Mark.NONE)
    assert table.notes[0].startswith("Bold: significantly higher than every other row")
    assert "Holm over 5 comparisons" in table.notes[0]


def test_a_lead_that_depends_on_the_seed_is_not_bold(fake):
    for seed, of_first in ((0, 1.0), (1, 0.1)):
        for method, chance in (("ft-l", of_first), ("onceedit", 0.2)):
            chances = dict.fromkeys(("reliability", "generality", "locality"), chance)
            fake.write_cell(method, "tiny/llama", "zsre", seed=seed, chances=chances)
    fake.write_manifest()
    (table, *_), numbers = registry.tables.get("ripple")(load_suite(fake.root, "main_table", "mini"))

    first = numbers[(numbers["method"] == "FT-L") & (numbers["kind"] == "Rel")]["value"].iloc[0]
    assert first == pytest.approx(0.55, abs=0.1)
    assert {entry.mark for row in table.sections[0].rows for entry in row.entries} == {Mark.NONE}


def test_chains_of_all_hops_are_others_for_each_method_so_given_hops_is_never_ranked(fake, monkeypatch):
    made = fake_store.fake_records

    def with_chains(*args):
        rows = made(*args)
        kind = rows["axis"].map({"portability": "2 hops", "single_hop": "Edited"}).fillna("")
        return rows.assign(kind=kind, chain=np.where(kind == "", "", rows["record_id"]))

    monkeypatch.setattr(fake_store, "fake_records", with_chains)
    fake_store._scored.cache_clear()
    axes = ("reliability", "portability", "single_hop")
    for method, chance in (("none", 0.0), ("ft-l", 0.3), ("onceedit", 0.95)):
        fake.write_cell(method, "tiny/llama", "zsre", chances=dict.fromkeys(axes, chance))
    fake.write_manifest()
    frame = load_suite(fake.root, "main_table", "mini")
    fake_store._scored.cache_clear()
    (table, *_), numbers = registry.tables.get("multihop")(frame)

    (once,) = (row for row in table.sections[0].rows if row.title == "OnceEdit")
    ranked = {
        column.title: (column.is_ranked, entry.mark, entry.note)
        for column, entry in zip(table.columns, once.entries, strict=True)
    }
    assert ranked.pop("Given hops") == (False, Mark.NONE, "")
    assert set(ranked.values()) == {(True, Mark.BEST, "")}
    n = numbers[(numbers["kind"] == "Given hops") & (numbers["protocol"] == "generation")].set_index("method")["n"]
    assert n["Unedited"] == 0 < n["FT-L"] < n["OnceEdit"] < 50
    assert (
        "n: Edit 50; Single hops: Edited 50; Multi-hop: 2 hops 50; Exact: All hops 50, Any 50, Given hops 0–"
        in "".join(table.notes)
    )


def test_the_caption_names_the_template_and_does_not_claim_a_choice(fake):
    fake.write_suite(methods=("ft-l",), models=("tiny/llama",), data=("zsre",), templates=("none", "paper"))
    (table, *_), numbers = registry.tables.get("ripple")(load_suite(fake.root, "main_table", "mini"))

    assert "Prompt template: 'none'. ±: half" in table.caption
    assert "choice of the template" not in table.caption
    assert numbers["cells"].nunique() == 1


def test_a_failed_cell_is_a_dash_with_its_reason_below_its_own_model(fake):
    fake.write_suite(methods=("none", "ft-l"), models=("tiny/llama",), data=("zsre",))
    fake.write_cell("none", "tiny/mistral", "zsre")
    for method, model in (("ft-l", "tiny/mistral"), ("none", "tiny/gptj"), ("ft-l", "tiny/gptj")):
        fake.write_failure(method, model, "zsre", "out of memory")
    fake.unresolved = {"none-llama2-7b-zsre": "no such folder: x"}
    fake.add_planned("none", "tiny/llama", "counterfact")
    fake.write_manifest()
    (table, *_), _ = registry.tables.get("ripple")(load_suite(fake.root, "main_table", "mini"))

    shown = {
        section.title: {row.title: row.entries[0].text != DASH for row in section.rows} for section in table.sections
    }
    assert shown == {
        "Llama2-7B (mini)": {"Unedited": True, "FT-L": True},
        "Mistral-7B-v0.1 (mini)": {"Unedited": True, "FT-L": False},
        "GPT-J-6B (mini)": {"Unedited": False, "FT-L": False},
    }
    assert [section.remarks for section in table.sections] == [
        (),
        ("– ZsRE: FT-L on Mistral-7B-v0.1 (mini): failed: out of memory.",),
        ("– ZsRE: Unedited, FT-L on GPT-J-6B (mini): failed: out of memory.",),
    ]
    assert table.notes[-2:] == (
        "– CounterFact: Unedited on Llama2-7B (mini): not run.",
        "– ZsRE: Unedited on Llama2-7B: not run: no such folder: x.",
    )


def test_a_suite_without_chains_is_told_so(fake):
    fake.write_suite(methods=("none",), models=("tiny/llama",), data=("zsre",))

    with pytest.raises(UserError, match=r"needs questions that combine several facts.*datasets: \[mquake\]"):
        registry.tables.get("multihop")(load_suite(fake.root, "main_table", "mini"))


def test_chains_count_once_and_given_hops_are_those_whose_facts_are_all_right():
    rows = [
        *[
            ("hops", "a", "Edited", 1.0),
            ("hops", "a", "Known", 1.0),
            ("port", "a", "2 hops", 0.5),
            ("port", "a", "2 hops", 1.0),
        ],
        *[("hops", "b", "Edited", 1.0), ("hops", "b", "Known", 0.0), ("port", "b", "2 hops", 1.0)],
        *[("hops", "c", "Edited", 1.0), ("hops", "c", "Known", 1.0), ("port", "c", "2 hops", 0.0)],
    ]
    questions = pd.DataFrame(
        {
            "axis": [row[0] for row in rows],
            "chain": [row[1] for row in rows],
            "kind": [row[2] for row in rows],
            "score": [row[3] for row in rows],
            "exact": [float(row[3] == 1) for row in rows],
            "cluster": "r",
        }
    )
    means = _by_chain(questions, questions).drop(columns="cluster").mean()

    assert means[Quantity("Single hops", "Edited")] == 1
    assert means[Quantity("Single hops", "Known")] == pytest.approx(2 / 3)
    assert means[Quantity("Multi-hop", "2 hops")] == pytest.approx((0.75 + 1 + 0) / 3)
    assert means[Quantity("Exact", "All hops")] == pytest.approx(2 / 3)
    assert means[Quantity("Exact", "Any")] == pytest.approx(2 / 3)
    assert means[Quantity("Exact", "Given hops")] == pytest.approx(1 / 2)
