import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data import sources
from harness.data.load import files, load, resolve, select, strip_distractor, without_distractors
from harness.data.pools import is_dev
from harness.data.reading import read
from harness.data.show import show
from harness.errors import UserError
from harness.identity import digest, file_digest
from harness.records import DataRef
from tests.data.rows import COUNTERFACT, FLAT, KNOWEDIT, MEND, TABLE, flat, write


@pytest.fixture
def folder(tmp_path):
    """Forty flat records to edit, sixty in a train file, and unrelated files."""
    write(tmp_path / "cf" / "counterfact-edit.json", [flat(number) for number in range(40)])
    write(tmp_path / "cf" / "counterfact-train.json", [flat(number) for number in range(30, 90)])
    write(tmp_path / "mquake.json", [{"case_id": 1, "requested_rewrite": [{"prompt": "{}"}], "questions": ["q"]}])
    write(tmp_path / "config.json", {"lr": 1e-4})
    (tmp_path / "LICENSE").write_text("Is this free?\nYes.\n")
    return tmp_path


def subjects(records):
    return {record.subject.casefold() for record in records}


def test_the_edits_are_the_first_records_of_the_split_in_file_order(folder):
    test = load(resolve("counterfact", str(folder), 5)).edits
    dev = load(resolve("counterfact", str(folder), 2, split="dev")).edits

    assert [record.id for record in test] == [str(n) for n in range(40) if not is_dev("counterfact", str(n))][:5]
    assert [record.id for record in dev] == [str(n) for n in range(40) if is_dev("counterfact", str(n))][:2]
    assert [record.id for record in load(resolve("counterfact", str(folder), 9, split="all")).edits] == [
        str(n) for n in range(9)
    ]


def test_the_three_groups_share_no_subject(folder):
    data = load(resolve("counterfact", str(folder), 20, train=25, unrelated=10))

    edits, train, unrelated = map(subjects, (data.edits, data.train, data.unrelated))
    assert not edits & train
    assert not edits & unrelated
    assert not train & unrelated
    assert (len(train), len(unrelated)) == (25, 10)


def test_the_pools_come_from_the_rest_of_the_edited_file_first(folder):
    data = load(resolve("counterfact", str(folder), 5, train=10, unrelated=5))

    assert max(int(record.id) for record in (*data.train, *data.unrelated)) < 40
    assert not subjects(data.edits) & subjects(data.train)


def test_train_records_with_a_rephrase_and_a_locality_probe_are_counted(folder):
    data = load(resolve("zsre", "synthetic", 50, train=200))
    assert data.ref.examples == sum(1 for record in data.train if record.rephrases and record.locality)
    assert 0 < data.ref.examples < len(data.train)
    assert resolve("counterfact", str(folder), 5, train=30).examples == 0, "flat records have no rephrase"


def test_edits_without_a_subject_are_counted(tmp_path):
    facts = [
        {"prompt": f"Fact {n} is", "target_new": "new", **({"subject": f"Fact {n}"} if n else {})} for n in range(3)
    ]
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    assert resolve("facts", str(tmp_path), 3, split="all").without_subject == 1


def test_other_files_fill_a_pool_when_the_edited_file_is_exhausted(folder):
    data = load(resolve("counterfact", str(folder), 5, train=30, unrelated=5))

    assert max(int(record.id) for record in data.train) >= 40
    assert not subjects(data.edits) & subjects(data.train)


def test_files_that_number_their_records_independently_share_no_id(tmp_path):
    write(tmp_path / "edits.json", [flat(number) for number in range(20)])
    write(tmp_path / "pool_train.json", [flat(number, subject=f"Stranger{number}") for number in range(40)])

    data = load(resolve("counterfact", str(tmp_path), 20, split="all", train=15, unrelated=20))

    ids = [record.id for record in (*data.edits, *data.train, *data.unrelated)]
    assert ids[:20] == [str(number) for number in range(20)]
    assert len(set(ids)) == len(ids) == 55
    assert "Stranger3 is" in show("counterfact", str(tmp_path), next(i for i in ids if i.startswith("3-")))


def test_a_record_that_two_files_have_keeps_its_id(folder):
    data = load(resolve("counterfact", str(folder), 5, split="all", train=80))

    assert all(record.id.isdecimal() for record in data.train)


def test_the_hash_says_which_mention_is_edited_only_where_the_texts_do_not(tmp_path):
    """`Art` in `Artland`: such a cell was edited at the wrong word, so its results must not be used again."""
    hashes = {}
    for prompt in ("Art of Artland is", "Artland and Art is"):
        write(tmp_path / "a.json", [FLAT | {"subject": "Art", "prompt": prompt}])
        ref = resolve("counterfact", str(tmp_path), 1, split="all")
        plain = digest({"edits": load(ref).edits, "train": (), "unrelated": ()})
        hashes[prompt] = ref.sha256 == plain
    assert hashes == {"Art of Artland is": False, "Artland and Art is": True}


def test_the_hash_says_that_an_unrelated_record_has_no_answer(tmp_path):
    """It is asked nevertheless, which it was not in cells from before."""
    hashes = []
    for row in (flat(1), flat(1) | {"ground_truth": None}):
        write(tmp_path / "a.json", [FLAT, row])
        data = load(resolve("counterfact", str(tmp_path), 1, split="all", unrelated=1))
        plain = digest({"edits": data.edits, "train": (), "unrelated": data.unrelated})
        hashes.append((data.unrelated[0].ground_truth != "", data.ref.sha256 == plain))
    assert hashes == [(True, True), (False, False)]


def test_a_prompt_template_that_mentions_the_subject_again_is_refused(tmp_path):
    for subject in ("Answer", "Which"):
        write(tmp_path / "a.json", [KNOWEDIT | {"subject": subject, "prompt": f"{subject} family does it belong to?"}])
        if subject == "Answer":
            with pytest.raises(
                UserError, match=r"record \w+: the prompt template mentions the subject 'Answer' itself"
            ):
                resolve("zsre", str(tmp_path), 1, split="all", template="paper")
        else:
            assert resolve("zsre", str(tmp_path), 1, split="all", template="paper").sha256


@pytest.mark.parametrize(("split", "wanted"), [("test", 3), ("dev", 2)])
def test_a_pool_never_holds_a_record_of_the_other_half_of_the_edited_file(folder, split, wanted):
    write(folder / "cf" / "counterfact-train.json", [flat(number) for number in range(90)])

    data = load(resolve("counterfact", str(folder), wanted, split=split, train=30))

    shared = [record for record in data.train if int(record.id) < 40]
    assert all(is_dev("counterfact", record.id) == (split == "dev") for record in shared)


def test_a_question_without_a_subject_field_about_an_edited_subject_stays_out_of_the_pool(tmp_path):
    write(tmp_path / "edits.json", [KNOWEDIT])
    (tmp_path / "train.tsv").write_text("Where does epaspidoceras live?\tsea\nWho wrote it?\tBo\n" + TABLE)

    data = load(resolve("zsre", str(tmp_path), 1, split="all", train=3))

    assert "Where does epaspidoceras live?" not in [record.prompt for record in data.train]
    assert all(record.ground_truth for record in data.train)


def test_records_with_a_subject_are_preferred_to_questions_without(tmp_path):
    write(tmp_path / "edits.json", [KNOWEDIT])
    write(tmp_path / "mend_train.json", [MEND])
    (tmp_path / "train.tsv").write_text(TABLE)

    data = load(resolve("zsre", str(tmp_path), 1, split="all", train=2))

    assert data.train[0].subject == "Toodyay Fire Station"


def test_knowedit_is_edited_before_mend_and_the_original_before_the_flat_form(tmp_path):
    write(tmp_path / "a.json", [MEND])
    write(tmp_path / "b.json", [KNOWEDIT])
    write(tmp_path / "c.json", [flat(1)])
    write(tmp_path / "d.json", [COUNTERFACT])

    assert load(resolve("zsre", str(tmp_path), 1, split="all")).edits[0].target_new == "Noctuidae"
    assert load(resolve("counterfact", str(tmp_path), 1, split="all")).edits[0].id == "4482"


def test_a_train_file_is_edited_only_where_there_is_no_other(tmp_path):
    write(tmp_path / "knowedit-Train.json", [KNOWEDIT])
    assert load(resolve("zsre", str(tmp_path), 1, split="all")).edits[0].target_new == "Noctuidae"

    write(tmp_path / "mend-eval.json", [MEND])
    assert load(resolve("zsre", str(tmp_path), 1, split="all")).edits[0].target_new == "Kohn Pedersen Fox"


@pytest.mark.parametrize(
    ("name", "is_train"),
    [
        *(("zsre_mend_train.json", True), ("train-v2.json", True), ("counterfact-Train.json.gz", True)),
        *(("training.json", False), ("trainset.json", False), ("constraint.json", False), ("zsre.json", False)),
    ],
)
def test_a_train_file_has_train_as_a_whole_word_of_its_name(name, is_train):
    assert sources.is_train(Path("train", name)) == is_train


def test_a_suite_may_name_the_file_that_is_edited(folder):
    data = load(resolve("counterfact", str(folder), 3, split="all", train=90, file="cf/counterfact-train.json"))

    assert [record.id for record in data.edits] == ["30", "31", "32"]
    assert files(data.ref).keys() == {str(folder / "cf" / f"counterfact-{name}.json") for name in ("train", "edit")}


@pytest.mark.parametrize(
    ("file", "problem", "remedy"),
    [
        ("x.json", "no such file", "cf/counterfact-edit.json"),
        ("cf", "is a folder, but a file is expected", "cf/counterfact-edit.json"),
        ("counterfact-train.json", "no such file", "cf/counterfact-train.json"),
    ],
)
def test_a_file_without_edits_is_refused_with_one_that_has_some(folder, file, problem, remedy):
    with pytest.raises(UserError, match=rf"{file}: {problem} \(files with edits of 'counterfact' in ") as caught:
        resolve("counterfact", str(folder), 3, file=file)

    assert caught.value.fix == f"file: {remedy}"
    assert resolve("counterfact", str(folder), 3, file=remedy).file == remedy


def test_synthetic_records_have_no_files_to_choose_from():
    with pytest.raises(UserError, match=r"zsre: synthetic records have no file 'mine\.json'"):
        resolve("zsre", "synthetic", 3, file="mine.json")


def test_a_folder_with_a_file_that_lacks_a_field_names_both(tmp_path):
    path = write(tmp_path / "mine.json", [{"subject": "a", "src": "what is a?", "rephrase": "a is what?"}])

    with pytest.raises(UserError) as caught:
        resolve("zsre", str(tmp_path), 1)

    assert f"({path}: no record has the field 'alt' of ZsRE (MEND))" in caught.value.message
    assert caught.value.fix == f"python -m harness data list --data {tmp_path}"


def test_unusable_records_are_passed_over_and_noted(tmp_path):
    write(tmp_path / "edits.json", [flat(0), flat(1, target_new=""), flat(2), flat(3)])

    data = select(DataRef("counterfact", str(tmp_path), 3, split="all"))

    assert [record.id for record in data.edits] == ["0", "2", "3"]
    assert data.notes == (
        f"{tmp_path / 'edits.json'}: 1 of 4 records left out (record 2: field 'target_new' is empty)",
    )


def test_a_file_without_any_usable_record_is_refused_with_the_reason(tmp_path):
    path = write(tmp_path / "mine.json", [flat(1, target_new="")])

    with pytest.raises(UserError, match=r"1 of 1 records left out \(record 1: field 'target_new' is empty\)") as caught:
        resolve("counterfact", str(tmp_path), 1)

    assert str(path) in caught.value.message
    assert caught.value.fix == f"python -m harness data list --data {tmp_path}"


def test_the_hash_depends_on_the_records_and_not_on_their_location(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write(elsewhere / "x.json", [flat(number) for number in range(40)])
    write(elsewhere / "train.json", [flat(number) for number in range(30, 90)])

    here, there = (resolve("counterfact", str(source), 5, train=5) for source in (folder, elsewhere))

    assert here.sha256 == there.sha256
    assert here.identity() == there.identity()


@pytest.mark.parametrize("change", [{"edits": 6}, {"train": 4}, {"unrelated": 1}, {"template": "paper"}])
def test_another_selection_has_another_hash(folder, change):
    options = {"edits": 5, "train": 3}

    assert (
        resolve("counterfact", str(folder), **options).sha256
        != resolve("counterfact", str(folder), **(options | change)).sha256
    )


def test_files_that_changed_since_planning_are_refused(folder):
    ref = resolve("counterfact", str(folder), 5)
    write(folder / "cf" / "counterfact-edit.json", [flat(n, target_new="Welsh") for n in range(40)])

    with pytest.raises(UserError, match="the records of counterfact have changed since they were planned"):
        load(ref)


def test_a_change_outside_the_selection_does_not_matter(folder):
    ref = resolve("counterfact", str(folder), 5)
    write(folder / "cf" / "counterfact-edit.json", [flat(number) for number in range(39)])

    assert load(ref).ref == ref


def test_too_few_edits_are_refused_with_the_number_available(folder):
    available = sum(not is_dev("counterfact", str(number)) for number in range(40))

    with pytest.raises(UserError, match=rf"{available} records in the test split, 500 requested") as caught:
        resolve("counterfact", str(folder), 500)

    assert caught.value.fix == f"edits: {available} in the suite, or --edits {available}"


def test_if_no_record_can_be_edited_the_fix_names_the_option_that_leaves_them_out(tmp_path):
    rows = [flat(number) for number in range(40)]
    one = next(row for row in rows if not is_dev("counterfact", str(row["case_id"])))
    write(tmp_path / "split" / "a.json", [one])
    write(tmp_path / "same" / "a.json", [one | {"target_new": "French"}])
    options = {"split": {"split": "dev"}, "same": {"conflicts": "drop"}}

    fixes = {}
    for name, asked in options.items():
        with pytest.raises(UserError) as caught:
            resolve("counterfact", str(tmp_path / name), 1, **asked)
        fixes[name] = caught.value.fix
    with pytest.raises(UserError) as caught:
        resolve("counterfact", str(tmp_path / "split"), 1, without=(str(one["case_id"]),))

    assert fixes == {"split": "split: all", "same": "conflicts: keep"}
    assert caught.value.fix == "too_long: refuse"


@pytest.mark.parametrize("pool", ["train", "unrelated"])
def test_a_pool_that_cannot_be_filled_is_smaller_and_the_reference_says_how_large(folder, pool):
    ref = resolve("counterfact", str(folder), 5, **{pool: 500})

    assert 0 < getattr(ref, pool) < 500
    assert len(getattr(load(ref), pool)) == getattr(ref, pool)
    assert resolve("counterfact", str(folder), 5, **{pool: getattr(ref, pool)}) == ref


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"edits": 0}, "edits is 0 but must be at least 1"),
        ({"edits": 1, "train": -1}, "train is -1 but must be at least 0"),
        ({"edits": 1, "template": "papre"}, "unknown template 'papre' \\(did you mean 'paper'"),
        ({"edits": 1, "split": "validation"}, "unknown split 'validation'"),
    ],
)
def test_an_invalid_option_is_refused(folder, options, complaint):
    with pytest.raises(UserError, match=complaint):
        resolve("counterfact", str(folder), **options)


def test_an_unknown_dataset_is_refused_with_the_nearest(folder):
    with pytest.raises(UserError, match="unknown dataset 'counterfacts' \\(did you mean 'counterfact'"):
        resolve("counterfacts", str(folder), 1)


def test_contradictory_records_are_replaced_by_the_next_ones_on_request(tmp_path):
    rows = [flat(number) for number in range(8)]
    rows[1] |= {"target_new": "French"}  # changes nothing
    rows[4] |= {"locality_prompt": rows[2]["prompt"]}
    write(tmp_path / "edits.json", rows)

    kept, dropped = (
        select(DataRef("counterfact", str(tmp_path), 5, split="all", conflicts=conflicts))
        for conflicts in ("keep", "drop")
    )

    assert [record.id for record in kept.edits] == ["0", "1", "2", "3", "4"]
    assert [record.id for record in dropped.edits] == ["0", "2", "3", "5", "6"]
    assert (kept.contradictory, dropped.contradictory) == (0, 2)
    assert load(dropped.ref) == dropped
    assert kept.ref.identity().keys() == dropped.ref.identity().keys()
    assert kept.ref.sha256 != dropped.ref.sha256
    with pytest.raises(UserError, match="8 records, 6 of them usable together, 7 requested"):
        resolve("counterfact", str(tmp_path), 7, split="all", conflicts="drop")


def test_dropping_contradictions_where_there_are_none_changes_no_identity(folder):
    kept, dropped = (resolve("counterfact", str(folder), 5, train=3, conflicts=choice) for choice in ("keep", "drop"))

    assert kept.identity() == dropped.identity()


def test_named_records_are_left_out_of_edits_and_pools(folder):
    data = select(DataRef("counterfact", str(folder), 3, split="all", train=90, without=("1", "20", "50")))

    assert [record.id for record in data.edits] == ["0", "2", "3"]
    assert not {"1", "20", "50"} & {record.id for record in data.train}


def test_a_file_in_place_of_a_folder_is_refused_with_its_folder(folder):
    with pytest.raises(UserError, match="a file where a folder is expected") as caught:
        resolve("counterfact", str(folder / "cf" / "counterfact-edit.json"), 1)

    assert caught.value.fix == f"python -m harness data list --data {folder / 'cf'}"


def test_a_missing_folder_says_how_to_fetch(tmp_path):
    with pytest.raises(UserError, match="no such folder") as caught:
        resolve("zsre", str(tmp_path / "nowhere"), 1)

    assert caught.value.fix == f"python -m harness data fetch zsre --to {tmp_path / 'nowhere'}"


def test_a_folder_without_the_dataset_says_how_to_fetch(folder):
    with pytest.raises(UserError, match="no file of dataset 'zsre'") as caught:
        resolve("zsre", str(folder), 1)

    assert caught.value.fix == f"python -m harness data fetch zsre --to {folder}"


def test_a_broken_file_of_the_dataset_is_never_ignored(folder):
    (folder / "more.json").write_text(json.dumps([flat(1), flat(2)])[:-9])

    with pytest.raises(UserError, match=r"more\.json: record 2: invalid or truncated JSON"):
        resolve("counterfact", str(folder), 5)


def test_hidden_files_are_ignored(folder):
    (folder / ".cache.json").write_text('[{"locality_prompt": ')

    assert resolve("counterfact", str(folder), 5).sha256


def test_the_papers_template_wraps_every_prompt(tmp_path):
    write(tmp_path / "a.json", [COUNTERFACT])
    write(tmp_path / "b.json", [KNOWEDIT])

    cloze = load(resolve("counterfact", str(tmp_path), 1, split="all", template="paper")).edits[0]
    question = load(resolve("zsre", str(tmp_path), 1, split="all", template="paper")).edits[0]

    assert cloze.prompt == "Complete this half sentence.\n [Half Sentence]: Spike Hughes originates from\n[Answer]:"
    assert question.prompt == (
        "Answer this question:\n[Question]: Which family does Epaspidoceras belong to?\n[Answer]:"
    )
    for text in (*cloze.rephrases, *cloze.generation_prompts, *(probe.prompt for probe in cloze.locality)):
        assert text.startswith("Complete this half sentence.\n [Half Sentence]: ")
    assert cloze.target_new == "Philadelphia"


def test_distractors_are_stripped_only_on_request(tmp_path):
    write(tmp_path / "a.json", [COUNTERFACT])

    kept, cut = (
        load(resolve("counterfact", str(tmp_path), 1, split="all", strip_distractor=strip)).edits[0]
        for strip in (False, True)
    )

    assert kept.rephrases[0] == "The mayor ran again. Spike Hughes is native to"
    assert cut.rephrases[0] == "Spike Hughes is native to"


def test_the_files_of_a_selection_are_named_with_their_checksums(folder):
    ref = resolve("counterfact", str(folder), 5, train=5)
    paths = [folder / "cf" / name for name in ("counterfact-edit.json", "counterfact-train.json")]

    assert files(ref) == {str(path): file_digest(path) for path in paths}
    assert files(replace(ref, train=0)) == {str(paths[0]): file_digest(paths[0])}


CUT = [
    ("The mayor ran again. Spike Hughes is native to", "Spike Hughes", "Spike Hughes is native to"),
    ("Year\n! Georgie Fame, the", "Georgie Fame", "Georgie Fame, the"),
    ("Ever Cross Your Mind? Dent Island Light, in", "Dent Island Light", "Dent Island Light, in"),
    ("Conway Notation\nGallery\n\nSkype is developed by", "Skype", "Skype is developed by"),
    ('"Change in the corn belt." Detroit Express, in', "Detroit Express", "Detroit Express, in"),
    ("(As of 2017, they are up to 1975.) The Fratellis, from", "The Fratellis", "The Fratellis, from"),
    (
        "Retrieved May 10, 2011. The language of Mariana Pineda was",
        "Mariana Pineda",
        "The language of Mariana Pineda was",
    ),
    ("It was the last season.Spike Hughes is native to", "Spike Hughes", "Spike Hughes is native to"),
    ("First one. Second one. In Sambir, they speak", "Sambir", "In Sambir, they speak"),
    ("Ann met Bo. Then Bo left. Bo lives in", "Bo", "Bo lives in"),
]
KEPT = [
    ("John C. Breckinridge succumbed at", "John C. Breckinridge"),
    ("NU.nl was written in", "NU.nl"),
    ("What is the twin city of Edinburgh? It is", "Edinburgh"),
    ("The St.Gallen office of W. T. Cosgrave is in", "nobody"),
    ("Nothing here names it. At all", "Spike Hughes"),
    ("REDIRECT Webster Parish, Louisiana Keith Emerson plays", "Keith Emerson"),
    ("The mayor ran again. It stays", ""),
]


@pytest.mark.parametrize(("paraphrase", "subject", "expected"), CUT)
def test_everything_before_the_sentence_with_the_subject_is_stripped(paraphrase, subject, expected):
    assert strip_distractor(paraphrase, subject) == expected


@pytest.mark.parametrize(("paraphrase", "subject"), KEPT)
def test_nothing_is_stripped_without_a_boundary_before_the_subject(paraphrase, subject):
    assert strip_distractor(paraphrase, subject) == paraphrase


def test_a_subject_keeps_its_periods_after_a_distractor():
    text = "It closed. I.R.S. Records Presents aired on"

    assert strip_distractor(text, "I.R.S. Records Presents") == "I.R.S. Records Presents aired on"


@given(
    st.text(max_size=60),
    st.text(min_size=1, max_size=12).filter(lambda text: text == text.strip()),
    st.text(max_size=20),
)
def test_stripping_keeps_the_subject_and_everything_after_it(before, subject, after):
    text = before + subject + after

    stripped = strip_distractor(text, subject)

    assert text.endswith(stripped)
    assert subject in stripped
    assert strip_distractor(stripped, subject) == stripped


def test_only_the_rephrases_of_a_record_are_stripped(tmp_path):
    record = read(write(tmp_path / "a.json", [COUNTERFACT])).records[0]

    stripped = without_distractors(record)

    assert stripped.rephrases == ("Spike Hughes is native to", "Spike Hughes was born in")
    assert stripped.generation_prompts == record.generation_prompts
