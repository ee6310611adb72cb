"""Published numbers next to measured ones, only where they are about the same thing."""

import json
import math

import pytest

from harness.errors import UserError
from reports.frame import load_suite
from reports.published import NUMBERS, CostPlace, PaperCosts, Place, read, read_costs
from reports.tables.flops import flops
from reports.tables.quality import main
from reports.tables.time import time
from tests.helpers import fake_store

MODELS = {"llama2-7b": "Llama2-7B", "mistral-7b-v0.1": "Mistral-7B-v0.1", "gpt-j-6b": "GPT-J-6B"}


def test_the_file_has_the_numbers_of_the_paper(shared):
    """Of each number of Tables 1 to 3 and 6 to 8, and with a row for each that is not a repetition."""
    published = json.loads((shared / "paper" / "onceedit_tables.json").read_text())
    known = read("onceedit")
    printed = {(record["table"], record["avg"]) for record in published["records"]}
    assert {(int(number.table), number.avg) for place, number in known.items() if place.model != "all"} <= printed
    assert known[Place("onceedit", "all", "counterfact", "teacher_forced", 1000)].note
    assert known[Place("onceedit.lambda_weight=0.4", "llama2-7b", "zsre", "generation", 200)].avg == 0.99
    assert len(known) == len(
        [line for line in (NUMBERS / "onceedit.csv").read_text().splitlines() if line[0].isdigit()]
    )


@pytest.fixture
def paper_scale(fake, monkeypatch):
    """A store with cells of the paper's models and number of edits; builds its table for teacher forcing."""
    monkeypatch.setattr(fake_store, "MODELS", MODELS)

    def build(edits, published="onceedit", models=tuple(MODELS)):
        for method in ("none", "ft-l", "onceedit"):
            for model in models:
                file = fake.write_cell(method, model, "counterfact", records=20) / "cell.json"
                cell = json.loads(file.read_text())
                file.write_text(json.dumps({**cell, "data": {**cell["data"], "edits": edits}}))
        fake.write_manifest()
        file = fake.root / "suites" / "main_table.mini.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "published": published}))
        return main(load_suite(fake.root, "main_table", "mini"))[0][0]

    return build


def test_avg_and_score_of_the_same_models_data_and_edits_get_a_column(paper_scale):
    table = paper_scale(1000)
    titles = [column.title for column in table.columns]
    assert titles == ["Rel", "Gen", "Loc", "Avg", "paper"] * 3 + ["Score", "paper", "Freq"]
    rows = {row.title: row.entries for row in table.sections[0].rows}
    assert [rows["OnceEdit"][place].text for place in (4, 9, 14)] == ["0.81", "0.77", "0.74"]
    assert (rows["OnceEdit"][-2].text, rows["OnceEdit"][-2].note) == ("0.72", "?")
    assert rows["Unedited"][4].text == "–"
    assert any(note.startswith("paper: Avg and Score as printed") for note in table.notes)
    assert "? as printed, but the mean of the printed Avg is 0.77." in table.notes


def test_with_fewer_edits_or_without_published_numbers_there_is_no_column(paper_scale):
    assert "paper" not in [column.title for column in paper_scale(50).columns]
    assert "paper" not in [column.title for column in paper_scale(50, published="").columns]


def test_a_score_over_fewer_models_is_not_shown_next_to_the_published_one(paper_scale):
    table = paper_scale(1000, models=("llama2-7b",))
    assert [column.title for column in table.columns] == ["Rel", "Gen", "Loc", "Avg", "paper", "Score", "Freq"]
    assert not any(note.startswith("?") for note in table.notes)


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(UserError, match=r"no published numbers 'onceedti' \(did you mean 'onceedit'\?\)"):
        read("onceedti")


def test_published_costs_are_those_of_tables_4_5_and_9(shared):
    published = json.loads((shared / "paper" / "onceedit_tables.json").read_text())
    known = read_costs("onceedit")
    by_title = {**{title: name for name, title in MODELS.items()}, "total": "total"}
    for row in published["editing_time_table4"]:
        for title, name in by_title.items():
            expected = math.inf if row["over_100x"] else row[title]
            quantity = "time_from_scratch_vs_onceedit" if row["over_100x"] else "edit_time_vs_onceedit"
            assert known[CostPlace(row["method"].lower(), name, quantity)].value == expected
    for row in published["flops_table5"]:
        found = [
            known[CostPlace("onceedit", by_title[row["model"]], quantity)].value
            for quantity in ("tflops_per_token", "tflops_attach", "attach_in_tokens")
        ]
        assert found == [row["tflops_per_token"], row["tflops_all"], row["num_tokens"]]
    assert known[CostPlace("onceedit", "gpt-j-6b", "anchors")].value == 17830
    assert PaperCosts(known, frozenset()).entry("mend", "llama2-7b", "time_from_scratch_vs_onceedit").text == "> 100"


def test_cost_tables_show_the_paper_next_to_what_was_measured(fake, monkeypatch):
    monkeypatch.setattr(fake_store, "MODELS", MODELS)
    formula = {"flops": {"formula": {"attach": 12.6e12, "per_token": 13e9, "attach_in_tokens": 970}}}
    for method in ("ft-l", "onceedit"):
        for model in MODELS:
            fake.write_cell(method, model, "zsre", records=5, cost=formula if method == "onceedit" else None)

    def tables(published):
        fake.write_manifest()
        file = fake.root / "suites" / "main_table.mini.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "published": published}))
        frame = load_suite(fake.root, "main_table", "mini")
        return [*time(frame)[0], *flops(frame)[0]]

    of_time, attaching, transfer, _ = tables("onceedit")
    assert [column.title for column in of_time.columns] == ["edit s", "edit ×", "all s", "all ×", "paper"] * 4
    rows = {row.title: [entry.text for entry in row.entries] for row in of_time.sections[0].rows}
    assert rows["FT-L"][4::5] == ["0.69", "0.71", "0.73", "2.13"]
    first = attaching.sections[0].rows[0]
    assert [entry.text for entry in first.entries[:6]] == ["0.013", "0.013", "12.600", "12.638", "970", "973"]
    assert attaching.columns[-1].title == "TFLOPs counted"
    assert transfer.sections[0].rows[2].entries[3].text == "17830"
    assert any("Table 9." in note for note in transfer.notes)
    assert all(column.title != "paper" for table in tables("") for column in table.columns)


def test_a_published_time_with_training_is_marked(fake, monkeypatch):
    monkeypatch.setattr(fake_store, "MODELS", MODELS)
    for method, label in (("onceedit", None), ("ft-l", "mend"), ("ft-l", "rome")):
        fake.write_cell(method, "llama2-7b", "zsre", label=label, records=5)
    fake.write_manifest()
    file = fake.root / "suites" / "main_table.mini.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "published": "onceedit"}))
    table = time(load_suite(fake.root, "main_table", "mini"))[0][0]
    last = {row.title: row.entries[4] for row in table.sections[0].rows}
    assert [(entry.text, entry.note) for entry in last.values()] == [("1.00", ""), ("> 100", "†"), ("2.29", "")]
    assert [note for note in table.notes if note.startswith("†")]


def test_flops_too_small_for_the_decimals_of_a_column_are_shown_as_powers_of_ten(fake):
    formula = {"flops": {"attach": 3e9, "formula": {"attach": 3e9, "per_token": 1_580_544, "attach_in_tokens": 2054}}}
    fake.write_cell("onceedit", "tiny/llama", "zsre", cost=formula)
    fake.write_manifest()
    (attaching, *_), _ = flops(load_suite(fake.root, "main_table", "mini"))
    assert [entry.text for entry in attaching.sections[0].rows[0].entries] == ["1.6e-06", "0.003", "2054", "0.003"]
