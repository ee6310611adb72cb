"""`data check` and `data convert`."""

import json
import re

import pytest

from harness import registry
from harness.cli_data import data_check, data_convert
from harness.data.check import check, convert
from harness.data.reading import from_rows, read
from harness.errors import UserError
from tests.data.rows import BENCHMARKS, EXAMPLES, QAEDIT, WIKI_COUNTERFACT, chain, without, write
from tests.docs.pages import DOCS


@pytest.mark.parametrize("name", EXAMPLES | BENCHMARKS)
def test_what_is_converted_is_read_as_the_same_records(tmp_path, name):
    source = from_rows([(EXAMPLES | BENCHMARKS)[name]], registry.formats.get(name), "here")
    convert(write(tmp_path / "upstream.json", [(EXAMPLES | BENCHMARKS)[name]]), tmp_path / "own.jsonl")
    found = read(tmp_path / "own.jsonl")

    assert found.format.name == "facts"
    assert found.records == source.records
    assert check(tmp_path / "own.jsonl").problems == ()


def test_a_report_counts_questions_by_field_and_kind(tmp_path):
    report = check(write(tmp_path / "a.json", [WIKI_COUNTERFACT, WIKI_COUNTERFACT]))

    assert report.questions == {
        ("locality", "Forgetfulness"): (1, 1),
        ("portability", "Reasoning"): (1, 1),
        ("portability", "Subject Aliasing"): (1, 1),
    }
    assert report.problems == ()
    assert report.remarks == ("1 edit repeats an earlier prompt; only the first is used",)


def test_a_report_names_the_records_that_cannot_be_used(tmp_path):
    report = check(write(tmp_path / "a.json", [QAEDIT, without(QAEDIT, "target"), QAEDIT | {"subject": "nobody"}]))

    assert report.problems[0] == "record 2: field 'target' is missing"
    assert report.problems[1].startswith("record 3: the subject 'nobody' ")
    assert len(report.problems) == 2


def test_misspelt_keys_of_our_own_format_are_reported(tmp_path):
    fact = {"prompt": "A is", "target_new": "B", "subject": "A", "rephrases": [], "portabilty": []}
    question = {"prompt": "C is", "answer": "D", "knd": "x"}
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (fact, fact | {"locality": [question]})))

    assert check(path).problems == (
        "unknown key 'portabilty' (did you mean 'portability'?): 2 times",
        "unknown key 'knd' of a question (did you mean 'kind'?): 1 time",
    )


def test_a_table_of_facts_has_lists_as_json(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "prompt,subject,target_new,rephrases,rephrase\n"
        'A is,A,B,"[""What is A?"", ""A was""]",\n'
        "C is,C,D,,\n"
        "E is,E,F,What is E?,\n"
    )
    report = check(path)

    assert [record.rephrases for record in report.file.records] == [("What is A?", "A was"), ()]
    assert report.problems == (
        "record 3: field 'rephrases' is not a list",
        "unknown key 'rephrase' (did you mean 'rephrases'?): 1 time",
    )


def test_questions_whose_edits_are_missing_are_counted(tmp_path):
    report = check(
        write(tmp_path / "a.json", [chain(1, ("{} is one", "B")), chain(2, ("{} is two", "C"), ("{} is one", "X"))])
    )

    assert "not asked: 5 questions that depend on an edit that is not in the file" in report.remarks


def test_a_file_that_exists_is_not_overwritten(tmp_path):
    source = write(tmp_path / "a.json", [QAEDIT])

    with pytest.raises(UserError, match=r"a\.json: already exists"):
        convert(source, source)


def test_a_folder_is_refused_with_the_command_that_lists_it(tmp_path):
    with pytest.raises(UserError, match="is a folder, not a file") as caught:
        check(tmp_path)

    assert caught.value.fix == f"python -m harness data list --data {tmp_path}"


def test_a_missing_file_is_looked_for_where_its_path_ends(tmp_path):
    with pytest.raises(UserError, match="no such file") as caught:
        check(tmp_path / "gone" / "deeper" / "a.json")

    assert caught.value.fix == f"ls {tmp_path}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("hello", "not a known editing dataset: neither JSON nor a known table"),
        (json.dumps([QAEDIT, QAEDIT])[:-30], "record 2: invalid or truncated JSON"),
        (
            json.dumps([without(QAEDIT, "subject")]),
            "no record has the field 'subject' of QAEdit",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, content, message):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)

    with pytest.raises(UserError, match=message):
        check(path)


def test_the_command_ends_with_1_if_there_is_something_to_change(tmp_path, capsys):
    good, bad = (
        write(tmp_path / "good.json", [QAEDIT]),
        write(tmp_path / "bad.json", [QAEDIT, without(QAEDIT, "target")]),
    )

    assert (data_check(good), data_check(bad)) == (0, 1)
    out = capsys.readouterr().out
    assert "1 record with 1 edit; usable: 1" in out
    assert "2 records with 2 edits; usable: 1" in out
    assert out.splitlines()[-1] == "record 2: field 'target' is missing"

    assert data_convert(bad, to=tmp_path / "own.jsonl") == 0
    assert f"own.jsonl: wrote 1 record; {bad} has 2 (QAEdit)" in capsys.readouterr().out


def test_the_example_of_the_manual_has_nothing_to_change(tmp_path):
    (example,) = re.findall(r"^```json\n(.*?)^```$", (DOCS / "data.md").read_text(), re.MULTILINE | re.DOTALL)
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(json.loads(example)))
    report = check(path)

    assert (report.problems, report.remarks) == ((), ())
    assert report.questions["portability", "Reasoning"] == (1, 1)
