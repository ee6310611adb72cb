import codecs
import gzip
import json
import random
import subprocess

import pytest

from harness.data.formats import Foreign, recognise
from harness.data.reading import Flaw, read
from harness.data.schemas import content_id
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
    assert record.locality == (Probe("Epaspidoceras taxon rank", "genus", "Relation Specificity"),)
    assert record.portability == (Probe("What is its common name?", "Owlet moths", "Reasoning"),)


def test_knowedit_allows_empty_locality_and_any_kind_of_portability(record_of):
    aliasing = {"Subject_Aliasing": [{"prompt": "Its family?", "ground_truth": ["moths"]}], "Reasoning": []}

    record = record_of(KNOWEDIT | {"locality": {}, "portability": aliasing})

    assert record.locality == ()
    assert record.portability == (Probe("Its family?", "moths", "Subject Aliasing"),)


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


FAULTS = [
    (KNOWEDIT, "target_new", 5, "field 'target_new' is not a string"),
    (KNOWEDIT, "target_new", "  ", "field 'target_new' is empty"),
    (KNOWEDIT, "ground_truth", [], "field 'ground_truth' is not a string"),
    (KNOWEDIT, "locality", {"R": [{"prompt": "x"}]}, "field 'locality.R.0.ground_truth' is missing"),
    (MEND, "answers", 7, "field 'answers' is not a string"),
    (MEND, "rephrase", "", "field 'rephrase' is empty"),
    (MEND, "alt", "", "has an empty target"),
    (COUNTERFACT, "case_id", 44.82, "field 'case_id' is not a string"),
    (COUNTERFACT, "requested_rewrite", [], "field 'requested_rewrite' is not a mapping"),
    (COUNTERFACT, "paraphrase_prompts", [""], "field 'paraphrase_prompts.0' is empty"),
    (COUNTERFACT, "portability", {"New Question": "q"}, "field 'portability.New Answer' is missing"),
    (FLAT, "subject", "Nobody", f"the subject 'Nobody' is not in its prompt {FLAT['prompt']!r}"),
    (
        FLAT,
        "subject",
        "Daniel",
        f"the subject 'Daniel' occurs only inside another word in its prompt {FLAT['prompt']!r}",
    ),
    (FLAT, "subject", "MOTHER", f"the subject 'MOTHER' is written 'mother' in its prompt {FLAT['prompt']!r}"),
    (FLAT, "target_new", "", "field 'target_new' is empty"),
]


@pytest.mark.parametrize(("row", "field", "value", "reason"), FAULTS)
def test_a_record_with_a_wrong_field_is_left_out_with_the_reason_in_every_format(tmp_path, row, field, value, reason):
    file = read(write(tmp_path / "data.json", [row, row | {field: value}, row]))

    assert file.flaws == (Flaw(2, reason),)
    assert (file.rows, file.numbers, file.repeated) == (3, (1,), 1)
    assert file.left_out() == f"{tmp_path / 'data.json'}: 1 of 3 records left out (record 2: {reason})"


REQUIRED = {
    "knowedit": ("subject", "prompt", "target_new"),
    "mend": ("subject", "src", "alt"),
    "counterfact-flat": ("subject", "prompt", "target_new"),
    "counterfact": (
        *("requested_rewrite", "requested_rewrite.subject", "requested_rewrite.prompt"),
        *("requested_rewrite.target_new.str", "requested_rewrite.target_true.str"),
    ),
}
OPTIONAL = [(name, field) for name, row in EXAMPLES.items() for field in row if field not in REQUIRED[name]]


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, fields in REQUIRED.items() for field in fields])
def test_a_record_without_a_part_of_its_edit_is_left_out(tmp_path, name, field):
    row = EXAMPLES[name]

    file = read(write(tmp_path / "data.json", [row, without(row, field)]))

    assert file.flaws == (Flaw(2, f"field '{field}' is missing"),)


@pytest.mark.parametrize("absent", [without, lambda row, field: row | {field: None}])
@pytest.mark.parametrize(("name", "field"), OPTIONAL)
def test_a_record_without_some_probes_is_read(tmp_path, name, field, absent):
    row = EXAMPLES[name]
    file = read(write(tmp_path / "data.json", [absent(row, field), row]))  # the second shows the format

    assert (file.flaws, file.numbers) == ((), (1,))
    assert file.records[0].target_new == read(write(tmp_path / "whole.json", [row])).records[0].target_new


def test_ids_may_be_strings_numbers_or_absent(record_of):
    ids = [record_of(row).id for row in (FLAT | {"case_id": "q-7"}, FLAT, without(FLAT, "case_id"))]

    assert ids == ["q-7", "0", content_id(FLAT["prompt"], FLAT["target_new"])]


@pytest.mark.parametrize("answers", ["genus", ["genus", "rank"], [["genus", "rank"], ["x"]]])
def test_answers_may_be_a_string_a_list_or_groups_of_them(record_of, answers):
    locality = {"Relation_Specificity": [{"prompt": "Epaspidoceras taxon rank", "ground_truth": answers}]}

    assert record_of(KNOWEDIT | {"ground_truth": answers}).ground_truth == "genus"
    assert record_of(KNOWEDIT | {"locality": locality}).locality == (
        Probe("Epaspidoceras taxon rank", "genus", "Relation Specificity"),
    )
    assert record_of(MEND | {"answers": answers}).ground_truth == "genus"


def json_lines(path, text):
    path.write_text("\n".join(json.dumps(row) for row in json.loads(text)) + "\n\n")


ENCODINGS = {
    "records.jsonl": json_lines,
    "records.json.gz": lambda path, text: path.write_bytes(gzip.compress(text.encode())),
    "utf-8-with-a-mark.json": lambda path, text: path.write_bytes(codecs.BOM_UTF8 + text.encode()),
    "utf-16.json": lambda path, text: path.write_bytes(text.encode("utf-16")),
    "indented.json": lambda path, text: path.write_text(json.dumps(json.loads(text), indent=4)),
}


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_file_is_read_in_every_encoding(tmp_path, name):
    rows = [flat(number, subject=f"Zoë{number}") for number in range(4)] + [flat(9, target_new="")]
    ENCODINGS[name](tmp_path / name, json.dumps(rows))

    file = read(tmp_path / name)

    assert [record.subject for record in file.records] == ["Zoë0", "Zoë1", "Zoë2", "Zoë3"]
    assert file.flaws == (Flaw(5, "field 'target_new' is empty"),)


def test_a_file_that_is_not_utf_8_is_refused_and_never_read_with_other_letters(tmp_path):
    path = tmp_path / "latin.json"
    path.write_bytes(json.dumps([flat(1), flat(2, subject="Zoë")], ensure_ascii=False).encode("latin-1"))

    with pytest.raises(UserError, match=r"latin\.json: byte \d+ is not UTF-8") as caught:
        read(path)
    subprocess.run(caught.value.fix, shell=True, check=True)
    assert [record.subject for record in read(path).records] == ["Person1", "Zoë"]
    assert [each.name for each in tmp_path.iterdir()] == ["latin.json"]


def test_a_compressed_file_that_is_not_utf_8_can_be_converted_too(tmp_path):
    path = tmp_path / "my latin.json"
    packed = path.with_name(f"{path.name}.gz")
    packed.write_bytes(gzip.compress(json.dumps([flat(2, subject="Zoë")], ensure_ascii=False).encode("latin-1")))

    for each in (packed, path):
        with pytest.raises(UserError, match="is not UTF-8") as caught:
            read(each)
        subprocess.run(caught.value.fix, shell=True, check=True)
    assert [record.subject for record in read(path).records] == ["Zoë"]


def test_half_a_character_is_a_flaw(tmp_path):
    path = tmp_path / "half.json"
    path.write_text(json.dumps([flat(1), flat(2)]).replace("Person2", "\\ud83d"))

    file = read(path)
    assert (file.numbers, [flaw.number for flaw in file.flaws]) == ((1,), [2])


def test_damaged_compressed_data_is_foreign(tmp_path):
    whole = gzip.compress(json.dumps([flat(number) for number in range(300)]).encode())
    (tmp_path / "cut.json.gz").write_bytes(whole[:40])

    found = recognise(tmp_path / "cut.json.gz")
    assert isinstance(found, Foreign)
    assert found.reason.startswith("cannot be read (Compressed file ended")


def test_a_truncated_compressed_file_of_the_dataset_is_reported(tmp_path):
    noise = [flat(number, note=random.Random(number).randbytes(40).hex()) for number in range(900)]
    path = tmp_path / "cut.json.gz"
    path.write_bytes(gzip.compress(json.dumps(noise).encode())[:-9])

    with pytest.raises(UserError, match=r"cut\.json\.gz: Compressed file ended") as caught:
        read(path)
    assert caught.value.fix == f"gzip -t {path}"


def test_a_template_must_have_one_place_for_the_subject(tmp_path):
    row = COUNTERFACT | {"requested_rewrite": COUNTERFACT["requested_rewrite"] | {"prompt": "He originates from"}}

    assert read(write(tmp_path / "data.json", [row])).flaws == (
        Flaw(1, "field 'requested_rewrite.prompt' does not contain {} exactly once"),
    )


def test_a_truncated_file_is_reported_with_the_record_it_ends_in(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([flat(number) for number in range(5)])[:-400])

    with pytest.raises(UserError, match=r"data\.json: record 4: invalid or truncated JSON") as caught:
        read(path)

    assert "\n" not in str(caught.value)


def test_a_record_that_is_not_a_mapping_is_left_out(tmp_path):
    assert read(write(tmp_path / "data.json", [FLAT, "text"])).flaws == (Flaw(2, "is not a mapping"),)


@pytest.mark.parametrize("text", [json.dumps([flat(1), flat(2)])[:-9], json.dumps(flat(1)) + "\n{"])
def test_errors_about_a_users_own_file_do_not_suggest_to_fetch_another(tmp_path, text):
    path = tmp_path / "data.json"
    path.write_text(text)

    with pytest.raises(UserError, match=r"data\.json: record 2: invalid or truncated JSON") as caught:
        read(path)
    assert caught.value.fix == f"python -m json.tool {path} /dev/null"

    (tmp_path / "checksums.json").write_text('{"data.json": "0"}')
    with pytest.raises(UserError) as caught:
        read(path)
    assert caught.value.fix == f"python -m harness data fetch counterfact --to {tmp_path.parent}"


def test_records_that_share_an_id_get_ids_of_their_own_whatever_their_order(tmp_path):
    rows = [flat(7), flat(7, subject="Other"), flat(8)]
    forward, backward = (
        read(write(tmp_path / name, given)).records for name, given in (("a.json", rows), ("b.json", rows[::-1]))
    )

    assert {record.id.partition("-")[0] for record in forward} == {"7", "8"}
    assert len({record.id for record in forward}) == 3
    assert {record.subject: record.id for record in forward} == {record.subject: record.id for record in backward}


def test_an_unrecognised_file_is_reported_with_the_known_formats(tmp_path):
    with pytest.raises(
        UserError, match=r"not a known editing dataset: fields of no known format \(known formats: Counter"
    ):
        read(write(tmp_path / "data.json", [{"question": "?", "answer": "!"}]))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("What is lost?", "expected a question and an answer, found 1 columns"),
        ("What?\tone\ttwo", "expected a question and an answer, found 3 columns"),
        ("\tanswer", "field 'src' is empty"),
    ],
)
def test_a_broken_line_of_a_table_is_left_out_with_its_number(tmp_path, line, reason):
    path = tmp_path / "train.tsv"
    path.write_text(TABLE * 5 + line + "\n" + TABLE)

    assert read(path).flaws == (Flaw(11, reason),)


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "data.json", [flat(1)])
    before = read(path)

    write(path, [flat(1), flat(2)])

    assert (len(before.records), len(read(path).records)) == (1, 2)
