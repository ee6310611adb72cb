import pytest

from harness import registry
from harness.cli import main
from harness.data.show import describe, show
from harness.errors import UserError
from tests.data.rows import COUNTERFACT, KNOWEDIT, MEND, TABLE, flat, write


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "a.json", [KNOWEDIT, KNOWEDIT])
    write(tmp_path / "b.json", [MEND, MEND | {"src": "Who owns Toodyay Fire Station?", "alt": ""}])
    write(tmp_path / "c.json", [COUNTERFACT])
    write(tmp_path / "d.json", [flat(7)])
    return tmp_path


@pytest.fixture
def printed(capsys):
    def run(action, name=None, source=None):
        arguments = ["data", action, *([name] if name else []), *(["--data", source] if source else [])]
        assert main(arguments) == 0
        return capsys.readouterr().out

    return run


def test_every_file_is_listed_with_its_use_and_counts(folder):
    rows = describe(str(folder))

    assert [(row.dataset, row.role, row.rows, row.usable) for row in rows] == [
        ("zsre", "edits", 2, 1),
        ("zsre", "pool", 2, 1),
        ("counterfact", "edits", 1, 1),
        ("counterfact", "pool", 1, 1),
    ]
    assert all(row.test + row.dev == row.usable for row in rows)
    assert rows[3].path == str(folder / "d.json")


def test_a_dataset_with_unrelated_facts_only_is_listed_as_a_pool(folder, printed):
    for name in "ab":
        (folder / f"{name}.json").unlink()
    (folder / "e.tsv").write_text(f"{TABLE * 3}no table row\n")
    rows = describe(str(folder))

    assert [(row.dataset, row.role) for row in rows] == [
        ("zsre", "pool"),
        ("counterfact", "edits"),
        ("counterfact", "pool"),
    ]
    assert describe(str(folder), "zsre") == rows[:1]
    assert "e.tsv: 1 of 7 records left out" in printed("list", source=str(folder))


def test_there_are_synthetic_records_of_five_datasets():
    assert [(row.dataset, row.path) for row in describe("synthetic")] == [
        (name, f"synthetic:{name}") for name in ("zsre", "counterfact", "wiki_counterfact", "halluedit", "mquake")
    ]


def test_a_folder_without_any_data_says_how_to_fetch(tmp_path):
    with pytest.raises(UserError, match=r"no editing dataset in this folder → python -m harness data fetch --to \S+$"):
        describe(str(tmp_path))


def test_a_record_is_shown_with_its_edit_and_probes(folder):
    text = show("counterfact", str(folder), "4482")

    assert f"record 1 of {folder / 'c.json'}" in text
    assert "London → Philadelphia" in text
    assert "Max Mosley originates from → London" in text


def test_a_record_of_a_pool_file_is_found_too(folder):
    assert "French → English" in show("counterfact", str(folder), "7")


def test_without_an_id_the_first_record_is_shown(folder):
    assert "Aspidoceratidae → Noctuidae" in show("zsre", str(folder))


def test_an_unknown_id_is_reported_with_the_nearest(folder):
    with pytest.raises(UserError, match="dataset 'counterfact' has no record '4483' \\(did you mean '4482'"):
        show("counterfact", str(folder), "4483")


def test_a_line_break_in_a_record_stays_on_its_line(tmp_path):
    write(tmp_path / "c.json", [COUNTERFACT | {"paraphrase_prompts": ["Year\n! Spike Hughes is"]}])

    assert "Year⏎! Spike Hughes is" in show("counterfact", str(tmp_path))


def test_the_listing_is_one_line_per_file_whatever_the_width(folder, printed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    lines = printed("list", source=str(folder)).splitlines()

    assert len(lines) == 6
    assert lines[0].split()[:3] == ["dataset", "used", "for"]
    assert lines[5] == f"{folder / 'b.json'}: 1 of 2 records left out (record 2: has an empty target)"
    assert printed("list", "zsre", str(folder)).count("\n") == 4


def test_foreign_files_are_listed_with_the_reason_and_change_nothing(folder, printed):
    before = printed("list", source=str(folder))
    write(folder / "mquake.json", [{"case_id": 1, "requested_rewrite": [], "questions": ["?"]}])
    write(folder / "settings.json", {"lr": 0.1})
    (folder / "topics.csv").write_text("topic,subject\ncity,Toronto\n")
    (folder / "README.md").write_text("# Records\n")

    assert printed("list", source=str(folder)).removeprefix(before).splitlines() == [
        f"ignored: {folder / 'mquake.json'}: no record has the field 'new_answer' of MQuAKE",
        f"ignored: {folder / 'settings.json'}: fields of no known format",
        f"ignored: {folder / 'topics.csv'}: neither JSON nor a known table",
    ]


def test_a_folder_with_foreign_files_only_says_what_they_are(tmp_path):
    write(tmp_path / "settings.json", {"lr": 0.1})

    with pytest.raises(
        UserError, match=r"no editing dataset in this folder \(.*settings\.json: fields of no known"
    ) as caught:
        describe(str(tmp_path))
    assert "data fetch" not in str(caught.value)


def test_contradictions_of_a_file_are_counted_in_one_line(tmp_path, printed):
    rows = [flat(number) for number in range(3)]
    write(tmp_path / "edits.json", [*rows, flat(3, target_new="French", locality_prompt=rows[0]["prompt"])])

    assert printed("list", source=str(tmp_path)).splitlines()[-1] == (
        "if the whole file is edited: counterfact: 1 edit changes nothing, 1 locality probe is an edited prompt"
    )


def test_brackets_in_a_record_are_printed_as_they_are(tmp_path, printed):
    write(tmp_path / "c.json", [COUNTERFACT | {"generation_prompts": ["[bold]Spike Hughes[/bold] lives"]}])

    assert "[bold]Spike Hughes[/bold] lives" in printed("show", "counterfact", str(tmp_path))


def test_the_folder_in_the_environment_is_the_default(folder, printed, monkeypatch):
    monkeypatch.setenv("HARNESS_DATA", str(folder))
    assert "London → Philadelphia" in printed("show", "counterfact")

    monkeypatch.delenv("HARNESS_DATA")
    assert "synthetic:counterfact" in printed("show", "counterfact")


def test_a_folder_in_the_environment_that_is_gone_is_said_by_its_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HARNESS_DATA", str(tmp_path / "gone"))
    assert main(["data", "list"]) == 2
    assert capsys.readouterr().err == f"harness: HARNESS_DATA: no such folder: {tmp_path / 'gone'} → ls {tmp_path}\n"


def test_show_without_a_dataset_asks_for_one(capsys):
    assert main(["data", "show"]) == 2
    assert "Missing argument 'DATASET'" in capsys.readouterr().err


def test_facts_are_written_and_not_downloaded():
    assert registry.datasets.get("facts").remedy() == (
        "write a file of your facts (docs/data.md#our-own-format) and pass its folder with --data"
    )
