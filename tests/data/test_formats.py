import json

import pytest
from pydantic import TypeAdapter

from harness import registry
from harness.data.formats import Foreign, Format, recognise
from tests.data.rows import BENCHMARKS, COUNTERFACT, EXAMPLES, FLAT, KNOWEDIT, MEND, QAEDIT, TABLE, without, write


@pytest.mark.parametrize("name", EXAMPLES | BENCHMARKS)
def test_a_file_is_recognised_by_its_content_under_a_misleading_name(tmp_path, name):
    assert recognise(write(tmp_path / "mquake-train.txt", [(EXAMPLES | BENCHMARKS)[name]])) is registry.formats.get(
        name
    )


def test_a_table_of_questions_is_recognised_whatever_it_is_called(tmp_path):
    path = tmp_path / "readme.json"
    path.write_text(TABLE)

    assert recognise(path) is registry.formats.get("mend-tsv")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "[1, 2, 3]",
        '{"zsre.json": "0e02"}',
        "# Questions\nIs this a table?\nNo.\n",
        "name\tvalue\nlr\t0.1\n",
        json.dumps([{"text": "a passage", "concept": "c", "locality": {}}]),
        json.dumps([{"case_id": 1, "requested_rewrite": [{"prompt": "{} is"}], "questions": ["q"], "single_hops": []}]),
        json.dumps([{"case_id": 1, "requested_rewrite": {"prompt": "{}"}, "post": {"rewrite_prompts_probs": []}}]),
        json.dumps([without(KNOWEDIT, "target_new") | {"locality": {"Forgetfulness": []}}]),
        "prompt,target\nx,y\n",
    ],
)
def test_other_files_have_no_format(tmp_path, content):
    path = tmp_path / "counterfact-edit.json"
    path.write_text(content)

    assert isinstance(recognise(path), Foreign)


def test_binary_files_have_no_format(tmp_path):
    path = tmp_path / "zsre.json"
    path.write_bytes(bytes(range(256)) * 10)

    assert isinstance(recognise(path), Foreign)


@pytest.mark.parametrize(
    ("row", "field", "title"),
    [
        (MEND, "alt", "ZsRE (MEND)"),
        (COUNTERFACT, "neighborhood_prompts", "CounterFact (ROME)"),
        (QAEDIT, "subject", "QAEdit"),
    ],
)
def test_a_file_of_which_no_record_has_a_field_of_the_signature_is_foreign_and_the_field_is_named(
    tmp_path, row, field, title
):
    found = recognise(write(tmp_path / "x.json", [without(row, field)]))

    assert found == Foreign(f"no record has the field '{field}' of {title}")


@pytest.mark.parametrize(("row", "field"), [(MEND, "alt"), (COUNTERFACT, "requested_rewrite"), (FLAT, "subject")])
def test_a_file_whose_first_record_lacks_a_field_is_recognised(tmp_path, row, field):
    assert isinstance(recognise(write(tmp_path / "x.json", [without(row, field), row])), Format)


def test_field_names_inside_other_fields_do_not_count(tmp_path):
    assert isinstance(recognise(write(tmp_path / "x.json", [{"results": MEND}, {"results": [FLAT]}])), Foreign)


def test_a_record_longer_than_the_part_that_is_looked_at_is_recognised(tmp_path):
    assert isinstance(recognise(write(tmp_path / "x.json", [MEND | {"passage": "long " * 20_000}])), Format)


@pytest.mark.parametrize("extra", [{}, {"subject": "A"}, {"rephrases": []}, {"rephrase": ["What is A?"]}])
def test_our_own_format_is_recognised_by_prompt_and_target(tmp_path, extra):
    assert recognise(write(tmp_path / "x.json", [{"prompt": "A is", "target_new": "B", **extra}])) is (
        registry.formats.get("facts")
    )


def test_of_several_formats_that_fit_the_one_with_most_fields_is_taken(tmp_path, monkeypatch):
    own = Format("own", "own", "Own", TypeAdapter(list[dict]), frozenset({"prompt", "target_new", "weight"}), bool)
    monkeypatch.setitem(registry.formats._items, "own", own)
    monkeypatch.setitem(registry.formats._origin, "own", "elsewhere")

    assert recognise(write(tmp_path / "x.json", [{"prompt": "A is", "target_new": "B", "weight": 1}])) is own


def test_a_byte_order_mark_does_not_hide_a_format(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([MEND]).encode())

    assert recognise(path) is registry.formats.get("mend")
