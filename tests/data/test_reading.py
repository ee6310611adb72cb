import json

import pytest

from harness.data.reading import Flaw, read
from harness.errors import UserError
from harness.records import Probe
from tests.data.rows import COUNTERFACT, EXAMPLES, FLAT, KNOWEDIT, MEND, ONE_HOP, TABLE, flat, without, write


@pytest.fixture
def record_of(tmp_path):
    return lambda row: read(write(tmp_path / "file.json", [row])).records[0]


def test_knowedit_edits_to_target_new_and_keeps_the_first_ground_truth(record_of):
    record = record_of(KNOWEDIT)

    assert (record.target_new, record.ground_truth) == ("Noctuidae", "Aspidoceratidae")
    assert record.subject == "Epaspidoceras"
    assert record.rephrases == ("What family are Epaspidoceras?",)
    assert record.locality == (Probe("Epaspidoceras taxon rank", "genus"),)
    assert record.portability == (Probe("What is its common name?", "Owlet moths"),)


def test_knowedit_allows_empty_locality_and_any_kind_of_portability(record_of):
    aliasing = {"Subject_Aliasing": [{"prompt": "Its family?", "ground_truth": ["moths"]}], "Reasoning": []}

    record = record_of(KNOWEDIT | {"locality": {}, "portability": aliasing})

    assert record.locality == ()
    assert record.portability == (Probe("Its family?", "moths"),)


def test_mend_edits_to_alt_and_never_to_the_answers(record_of):
    record = record_of(MEND)

    assert record.target_new == "Kohn Pedersen Fox"
    assert record.ground_truth == "Ken Duncan"


def test_mend_locality_gets_its_missing_question_mark_once(record_of):
    assert record_of(MEND).locality == (Probe("nq question: who won the new york marathon?", "2017"),)
    assert record_of(MEND | {"loc": "who won?"}).locality == (Probe("who won?", "2017"),)


@pytest.mark.parametrize("row", [MEND, COUNTERFACT])
def test_the_portability_question_is_read_where_there_is_one(record_of, row):
    assert record_of(row).portability == ()
    assert record_of(row | {"portability": ONE_HOP}).portability == (
        Probe("In which city does that firm sit?", "Oslo"),
    )


def test_original_counterfact_fills_its_template_and_keeps_every_probe(record_of):
    record = record_of(COUNTERFACT)

    assert (record.id, record.relation) == ("4482", "P19")
    assert record.prompt == "Spike Hughes originates from"
    assert (record.target_new, record.ground_truth) == ("Philadelphia", "London")
    assert record.rephrases[0].startswith("The mayor ran again. ")
    assert record.locality[1] == Probe("Lita Ford was native to", "London")
    assert record.attributes == (Probe("Otis Rush was native to", "Philadelphia"),)
    assert record.generation_prompts == ("Spike Hughes currently lives in",)


def test_flat_counterfact_gives_a_generation_prompt_and_no_rephrase(record_of):
    record = record_of(FLAT)

    assert record.rephrases == ()
    assert record.generation_prompts == ("Where Danielle Darrieux is from, people speak",)
    assert record.locality == (Probe("Michel Rocard is a native speaker of", "French"),)


def test_a_table_row_is_an_unrelated_fact_without_a_subject(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_text(TABLE)

    record = read(path).records[0]

    assert (record.prompt, record.subject) == ("What is the native language of Christiane Cohendy?", "")
    assert record.target_new == record.ground_truth == "German"


def test_surrounding_space_is_stripped(record_of):
    record = record_of(KNOWEDIT | {"target_new": " myna ", "subject": "Epaspidoceras "})

    assert (record.target_new, record.subject) == ("myna", "Epaspidoceras")


def test_ids_do_not_depend_on_the_order_of_the_file(tmp_path):
    other = MEND | {"src": "Who owns Toodyay Fire Station?"}
    forward = read(write(tmp_path / "a.json", [MEND, other]))
    backward = read(write(tmp_path / "b.json", [other, MEND]))

    assert [record.id for record in forward.records] == [record.id for record in reversed(backward.records)]


def test_of_repeated_prompts_the_first_is_kept(tmp_path):
    file = read(write(tmp_path / "a.json", [KNOWEDIT, KNOWEDIT | {"target_new": "Erebidae"}]))

    assert [record.target_new for record in file.records] == ["Noctuidae"]
    assert (file.rows, file.repeated) == (2, 1)


def test_official_mend_records_without_a_target_are_skipped_and_counted(tmp_path):
    file = read(write(tmp_path / "a.json", [MEND | {"alt": ""}, MEND]))

    assert len(file.records) == 1
    assert file.numbers == (2,)
    assert file.flaws == (Flaw(1, "has an empty target"),)


FAULTS = [
    (KNOWEDIT, "target_new", 5, "field 'target_new' is not a string"),
    (KNOWEDIT, "target_new", "  ", "field 'target_new' is empty"),
    (KNOWEDIT, "ground_truth", [], "field 'ground_truth' is an empty list"),
    (KNOWEDIT, "ground_truth", "genus", "field 'ground_truth' is not a list"),
    (KNOWEDIT, "locality", {"R": [{"prompt": "x"}]}, "field 'locality.R.0.ground_truth' is missing"),
    (MEND, "answers", None, "field 'answers' is not a list"),
    (MEND, "rephrase", "", "field 'rephrase' is empty"),
    (COUNTERFACT, "case_id", "4482", "field 'case_id' is not an integer"),
    (COUNTERFACT, "requested_rewrite", [], "field 'requested_rewrite' is not a mapping"),
    (COUNTERFACT, "paraphrase_prompts", [""], "field 'paraphrase_prompts.0' is empty"),
    (COUNTERFACT, "portability", {"New Question": "q"}, "field 'portability.New Answer' is missing"),
    (FLAT, "subject", "Nobody", "its subject 'Nobody' does not occur in its prompt"),
    (FLAT, "target_new", "", "field 'target_new' is empty"),
]


@pytest.mark.parametrize(("row", "field", "value", "complaint"), FAULTS)
def test_a_wrong_field_is_reported_with_path_record_and_field(tmp_path, row, field, value, complaint):
    path = write(tmp_path / "data.json", [row, row | {field: value}])

    with pytest.raises(UserError) as caught:
        read(path)

    assert caught.value.message == f"{path}: record 2: {complaint}"
    assert str(caught.value.fix).startswith("python -m harness data fetch ")


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(
            (name, field)
            for name in ("knowedit", "mend", "counterfact-flat")
            for field in EXAMPLES[name]
            if field not in ("cond", "pred")  # origin of upstream's target; the harness does not read them
        ),
        ("counterfact", "requested_rewrite.target_new.str"),
        ("counterfact", "requested_rewrite.subject"),
        ("counterfact", "neighborhood_prompts"),
        ("counterfact", "attribute_prompts"),
    ],
)
def test_no_required_field_may_be_missing(tmp_path, name, field):
    row = EXAMPLES[name]

    with pytest.raises(UserError, match=rf"record 2: field '{field}' is missing"):
        read(write(tmp_path / "data.json", [row, without(row, field)]))


def test_a_template_must_have_one_place_for_the_subject(tmp_path):
    row = COUNTERFACT | {"requested_rewrite": COUNTERFACT["requested_rewrite"] | {"prompt": "He originates from"}}

    with pytest.raises(UserError, match=r"record 1: field 'requested_rewrite.prompt' does not contain {} exactly once"):
        read(write(tmp_path / "data.json", [row]))


def test_a_truncated_file_is_reported_with_the_record_it_ends_in(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([flat(number) for number in range(5)])[:-400])

    with pytest.raises(UserError, match=r"data\.json: record 4: invalid or truncated JSON") as caught:
        read(path)

    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_a_list_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"data\.json: is not a list"):
        read(write(tmp_path / "data.json", {"records": [FLAT]}))


def test_a_record_that_is_not_a_mapping_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"record 2: is not a mapping"):
        read(write(tmp_path / "data.json", [FLAT, "text"]))


def test_records_that_share_an_id_get_ids_of_their_own_whatever_their_order(tmp_path):
    rows = [flat(7), flat(7, subject="Other"), flat(8)]
    forward, backward = (
        read(write(tmp_path / name, given)).records for name, given in (("a.json", rows), ("b.json", rows[::-1]))
    )

    assert {record.id.partition("-")[0] for record in forward} == {"7", "8"}
    assert len({record.id for record in forward}) == 3
    assert {record.subject: record.id for record in forward} == {record.subject: record.id for record in backward}


def test_an_unrecognised_file_is_reported_with_the_known_formats(tmp_path):
    with pytest.raises(UserError, match=r"not a known editing dataset \(known formats: CounterFact \(ROME\)"):
        read(write(tmp_path / "data.json", [{"question": "?", "answer": "!"}]))


@pytest.mark.parametrize("line", ["What is lost?", "What?\tone\ttwo", "\tanswer"])
def test_a_broken_line_of_a_table_is_reported_with_its_number(tmp_path, line):
    path = tmp_path / "train.tsv"
    path.write_text(TABLE * 5 + line + "\n" + TABLE)

    with pytest.raises(UserError, match="record 11: "):
        read(path)


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "data.json", [flat(1)])
    before = read(path)

    write(path, [flat(1), flat(2)])

    assert (len(before.records), len(read(path).records)) == (1, 2)
