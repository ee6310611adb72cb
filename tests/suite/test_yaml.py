from pathlib import Path

import pytest

from harness.errors import UserError
from harness.yaml_source import merge, read_chain, read_yaml


def _read(tmp_path: Path, text: str):
    file = tmp_path / "file.yaml"
    file.write_text(text)
    return read_yaml(file)


def test_every_value_knows_its_line(tmp_path):
    document = _read(tmp_path, "a: 1\nb:\n  - x\n  - {c: 2}\n")
    assert document.at(("b", 1, "c")).line == 4
    assert document.at(("b", 0)).line == 3
    assert document.plain() == {"a": 1, "b": ["x", {"c": 2}]}


def test_a_number_in_exponent_form_without_a_point_is_a_number(tmp_path):
    assert _read(tmp_path, "lr: 1e-4\nname: 1e\n").plain() == {"lr": 1e-4, "name": "1e"}


def test_nothing_in_a_file_is_executed(tmp_path):
    with pytest.raises(UserError, match=r"file\.yaml:1: the tag 'tag:yaml\.org,2002:python/object/apply:os\.getcwd'"):
        _read(tmp_path, "a: !!python/object/apply:os.getcwd []\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", ":3: duplicate key 'a', first on line 1"),
        ("a: {b: 1,\n b: 2}\n", ":2: duplicate key 'b', first on line 1"),
        ("a: [1\n", "not valid YAML"),
        ("- a\n", ":1: expected keys with values, found a list"),
        ("", ":1: expected keys with values, found nothing"),
        ("a: 1\n2: b\n", ":2: a key must be text, found '2'"),
        ("a: &x\n  b: *x\n", "an anchor refers to itself"),
        ("a: \x07\n", "not valid YAML"),
        ("a: 2020-01-01\n", ":1: the tag"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        _read(tmp_path, text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        read_yaml(tmp_path / "nowhere.yaml")


def test_mappings_merge_deeply_and_lists_replace(tmp_path):
    (tmp_path / "base.yaml").write_text("a: {x: 1, y: 2}\nb: [1, 2]\n")
    (tmp_path / "over.yaml").write_text("extends: base.yaml\na: {y: 3}\nb: [4]\n")
    base, over = read_chain(tmp_path / "over.yaml")
    merged = merge(base, over)
    assert merged.plain() == {"a": {"x": 1, "y": 3}, "b": [4]}
    assert merged.at(("a", "x")).file.name == "base.yaml"
    assert merged.at(("a", "y")).where.endswith("over.yaml:2")


def test_a_chain_reads_the_furthest_base_first_from_other_folders(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text("n: 1\n")
    (tmp_path / "sub/b.yaml").write_text("extends: ../a.yaml\nn: 2\n")
    (tmp_path / "c.yaml").write_text("extends: sub/b.yaml\nn: 3\n")
    assert [document.plain() for document in read_chain(tmp_path / "c.yaml")] == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_files_that_extend_each_other_in_a_circle_are_named(tmp_path):
    (tmp_path / "a.yaml").write_text("x: 1\nextends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(UserError, match=r"b\.yaml:1: extends: .* circle: a\.yaml → b\.yaml → a\.yaml"):
        read_chain(tmp_path / "a.yaml")


def test_a_file_that_extends_itself_is_a_circle(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: ./a.yaml\n")
    with pytest.raises(UserError, match="circle"):
        read_chain(tmp_path / "a.yaml")


def test_a_missing_base_is_reported_at_the_line_that_names_it(tmp_path):
    (tmp_path / "a.yaml").write_text("x: 1\nextends: bse.yaml\n")
    with pytest.raises(UserError, match=r"a\.yaml:2: extends: no such file: .*bse\.yaml"):
        read_chain(tmp_path / "a.yaml")


def test_a_list_of_bases_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: [b.yaml]\n")
    with pytest.raises(UserError, match=r"a\.yaml:1: extends: expected the name of one file, found a list"):
        read_chain(tmp_path / "a.yaml")
