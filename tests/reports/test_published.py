"""Published numbers next to measured ones, only where they are about the same thing."""

import json

import pytest

from harness.errors import UserError
from reports.frame import load_suite
from reports.published import NUMBERS, Place, read
from reports.tables.quality import main
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

    def build(edits, published="onceedit"):
        for method in ("none", "ft-l", "onceedit"):
            for model in MODELS:
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


def test_an_unknown_name_is_refused_with_a_suggestion():
    with pytest.raises(UserError, match=r"no published numbers 'onceedti' \(did you mean 'onceedit'\?\)"):
        read("onceedti")
