"""Benchmarks that ask what follows from an edit: their fields, their chains of edits, and their real files."""

import csv
import json

import pytest

from harness.data.load import select
from harness.data.reading import read
from harness.errors import UserError
from harness.records import DataRef, FirstEdits, Probe, askable
from tests.data.rows import (
    BENCHMARKS,
    HALLUEDIT,
    QAEDIT,
    WIKI_COUNTERFACT,
    WIKI_RECENT,
    WIKIBIO,
    chain,
    without,
    write,
)


@pytest.fixture
def records_of(tmp_path):
    return lambda *rows: read(write(tmp_path / "a.json", list(rows))).records


def table(path, *rows, cut=None):
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    if cut:
        path.write_text(path.read_text()[:cut])
    return path


def test_knowedit_keeps_the_kind_of_each_probe_and_every_acceptable_answer(records_of):
    (record,) = records_of(WIKI_COUNTERFACT)

    assert [probe.kind for probe in record.portability] == ["Reasoning", "Subject Aliasing"]
    assert record.portability[1] == Probe("The country of Gorsedd is", "Spain", "Subject Aliasing", ("España", "ES"))
    assert record.locality == (Probe("The founder of Goursez Vreizh is", "Le Fustec", "Forgetfulness"),)
    assert (record.target_new, record.ground_truth) == ("Spain", "France")


def test_a_recent_fact_has_no_earlier_answer_and_a_probe_without_an_answer_is_none(records_of):
    (record,) = records_of(WIKI_RECENT)

    assert record.ground_truth == ""
    assert record.locality == ()
    assert record.portability == (Probe("Is Leo Arons alive?", "no", "Logical Generalization", ("false",)),)


def test_a_biography_is_continued(records_of):
    (record,) = records_of(WIKIBIO)

    assert (record.prompt, record.target_new, record.subject) == (WIKIBIO["text"], WIKIBIO["labels"], "ann lee")


def test_ids_of_qaedit_name_their_source(records_of):
    (record,) = records_of(QAEDIT)

    assert record.id == "NQ-7"
    assert record.locality[1] == Probe("when is dawn", "06:00")


def test_hallueditbench_is_read_from_a_table_along_five_dimensions(tmp_path):
    (record,) = read(table(tmp_path / "places.csv", HALLUEDIT)).records

    assert (record.prompt, record.target_new) == (HALLUEDIT["question"], "Spanish")
    assert record.ground_truth == "Portuguese"
    assert record.rephrases == (HALLUEDIT["paraphrased_question"],)
    assert {probe.kind: probe.answer for probe in record.forms} == {
        "Multiple choice": "A",
        "Yes": "Yes",
        "No": "No",
        "Reversed": "Minas",
    }
    assert record.forms[0].prompt == "What is the official language of Minas? A. Spanish  B. French"
    assert record.portability == (Probe(HALLUEDIT["question_2hop"], "Spain", "2 hops"),)
    assert [probe.kind for probe in record.robustness] == ["Doubt", "Sure"]
    assert [(probe.prompt, probe.has_answer) for probe in record.locality] == [(HALLUEDIT["locality_question"], False)]


def test_an_empty_entry_of_a_table_is_a_missing_field(tmp_path):
    file = read(table(tmp_path / "a.csv", HALLUEDIT, HALLUEDIT | {"object": " "}, HALLUEDIT | {"yes_question": ""}))

    assert [(flaw.number, flaw.reason) for flaw in file.flaws] == [(2, "field 'object' is missing")]


def test_a_table_that_ends_within_an_entry_is_refused_with_its_record(tmp_path):
    quoted = HALLUEDIT | {"answer_2hop": 'Spain, "probably"'}
    whole = table(tmp_path / "a.csv", quoted, quoted)
    whole.write_text(whole.read_text().rstrip()[:-4])

    with pytest.raises(UserError, match=r"a\.csv: record 2: invalid or truncated table \(unexpected end of data\)"):
        read(whole)


def test_a_row_with_too_few_columns_is_left_out(tmp_path):
    whole = table(tmp_path / "a.csv", HALLUEDIT, HALLUEDIT)
    whole.write_text(whole.read_text() + "places,Minas\n")

    assert [(flaw.number, flaw.reason) for flaw in read(whole).flaws] == [(3, "has 2 columns, but the header 15")]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_missing_edit_leaves_out_the_record_and_names_the_field(tmp_path, name):
    needed = {"wikibio": "labels", "qaedit": "target", "halluedit": "object", "mquake": "new_answer"}
    field = needed.get(name, "target_new")
    row = BENCHMARKS[name]
    file = read(write(tmp_path / "a.json", [row, without(row, field)]))

    assert [(flaw.number, flaw.reason) for flaw in file.flaws] == [(2, f"field '{field}' is missing")]
    assert file.records


def test_a_chain_is_as_many_records_as_edits_and_the_first_has_its_questions(records_of):
    first, second = records_of(chain(7, ("{} is one", "B"), ("{} is two", "C")))

    assert (first.prompt, first.target_new, first.rephrases) == ("A is one", "B", ("Q: A is one?",))
    assert {probe.needs for probe in first.portability + first.hops} == {(first.id, second.id)}
    assert [probe.kind for probe in first.portability] == ["3 hops", "3 hops"]
    assert [probe.kind for probe in first.hops] == ["Edited", "Edited", "Known"]
    assert {probe.chain for probe in first.portability + first.hops} == {"7"}
    assert second.portability == second.hops == ()
    assert (first.split_id, second.split_id) == ("7", "7")


def test_an_edit_that_several_chains_share_is_made_once_and_keeps_the_questions_of_all(records_of):
    one, two, three = records_of(
        chain(1, ("{} is one", "B"), ("{} is two", "C")), chain(2, ("{} is one", "B"), ("{} is 3", "D"))
    )

    assert [probe.chain for probe in one.portability] == ["1", "1", "2", "2"]
    assert {probe.needs for probe in one.portability} == {(one.id, two.id), (one.id, three.id)}


def test_a_chain_with_an_edit_that_contradicts_an_earlier_one_is_not_asked(records_of):
    records = records_of(chain(1, ("{} is one", "B")), chain(2, ("{} is two", "C"), ("{} is one", "X")))

    assert {probe.chain for record in askable(records) for probe in record.portability} == {"1"}


def test_a_question_is_asked_once_all_its_edits_are_made(tmp_path):
    write(tmp_path / "a.json", [chain(1, ("{} is one", "B"), ("{} is two", "C")), chain(2, ("{} is three", "D"))])
    data = select(DataRef("mquake", str(tmp_path), 3, split="all"))
    fewer = select(DataRef("mquake", str(tmp_path), 1, split="all"))

    assert [len(record.portability) for record in data.edits] == [2, 0, 2]
    assert [len(record.portability) for record in fewer.edits] == [0]
    assert any("not asked: 5 questions that depend on an edit that is not among the 1" in note for note in fewer.notes)
    assert [len(record.portability) for record in FirstEdits.of(data.ref, 1).cut(data).edits] == [0]
    assert [len(record.portability) for record in FirstEdits.of(data.ref, 2).cut(data).edits] == [2, 0]


def test_an_edit_marked_as_not_edited_is_made_because_the_new_answers_depend_on_it(records_of):
    row = chain(1, ("{} is one", "B"), ("{} is two", "C"))
    row["requested_rewrite"][1]["is_edited"] = False
    one, two = records_of(row)

    assert two.target_new == "C"
    assert {probe.needs for probe in one.portability} == {(one.id, two.id)}
    assert [probe.kind for probe in one.hops] == ["Edited", "Edited", "Known"]


UPSTREAM = {
    "wiki_counterfact_part1.json": (714, 702, 1),
    "wikibio-test-all.json": (306, 306, 0),
    "QAEdit_inter_first500.json": (500, 500, 0),
    "entertainment_song.csv": (100, 100, 0),
    "human_scientist.csv": (99, 99, 0),
    "places_city.csv": (100, 100, 0),
}


@pytest.mark.parametrize("name", UPSTREAM)
def test_every_upstream_file_is_read_to_its_end(shared, name):
    found = sorted((shared / "upstream").rglob(name))
    if not found:
        pytest.skip(f"no {name} below {shared / 'upstream'}")
    file = read(found[0])

    assert (file.rows, len(file.records), len(file.flaws)) == UPSTREAM[name]


def test_damaged_json_names_the_record(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps([QAEDIT, QAEDIT])[:-40])

    with pytest.raises(UserError, match=r"a\.json: record 2: invalid or truncated JSON"):
        read(path)
