import json

import pytest

from harness import registry
from harness.data.formats import recognise
from tests.data.rows import COUNTERFACT, EXAMPLES, KNOWEDIT, MEND, TABLE, without, write


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_file_is_recognised_by_its_content_under_a_misleading_name(tmp_path, name):
    assert recognise(write(tmp_path / "mquake-train.txt", [EXAMPLES[name]])) is registry.formats.get(name)


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
        json.dumps([without(KNOWEDIT, "rephrase_prompt") | {"locality": {"Forgetfulness": []}}]),
    ],
)
def test_other_files_have_no_format(tmp_path, content):
    path = tmp_path / "counterfact-edit.json"
    path.write_text(content)

    assert recognise(path) is None


def test_binary_files_have_no_format(tmp_path):
    path = tmp_path / "zsre.json"
    path.write_bytes(bytes(range(256)) * 10)

    assert recognise(path) is None


@pytest.mark.parametrize(("row", "field"), [(MEND, "alt"), (MEND, "src"), (COUNTERFACT, "neighborhood_prompts")])
def test_a_file_whose_records_all_lack_a_field_is_still_recognised(tmp_path, row, field):
    assert recognise(write(tmp_path / "x.json", [without(row, field)])) is not None


def test_a_byte_order_mark_does_not_hide_a_format(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([MEND]).encode())

    assert recognise(path) is registry.formats.get("mend")
