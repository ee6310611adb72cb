"""The real upstream files: known pitfalls and record counts."""

import subprocess
import sys

import pytest

from harness.data.conflicts import Conflicts, count
from harness.data.load import load, resolve, select, strip_distractor
from harness.data.pools import is_dev
from harness.data.reading import read
from harness.data.show import describe
from harness.records import DataRef


@pytest.fixture(scope="session")
def real(shared):
    folder = shared / "data"
    if not folder.is_dir():
        pytest.skip(f"no folder of upstream records at {folder}")
    return folder


@pytest.fixture(scope="session")
def file_of(real):
    return lambda name: read(next(real.rglob(name)))


COUNTS = {
    "ZsRE-test-all.json": (1301, 1283, 0),
    "zsre_mend_eval_portability_gpt4.json": (1037, 1037, 0),
    "zsre_mend_train-1k.json": (1000, 998, 2),
    "zsre_mend_train_en_10000.tsv": (10000, 9965, 35),
    "counterfact_portability_gpt4.json": (1031, 1031, 0),
    "counterfact-edit.json": (10000, 9917, 0),
    "counterfact-train.json": (10000, 9923, 0),
    "MQuAKE-hard.json": (429, 767, 0),
    "mquake_remastered_3hop_sample.json": (100, 132, 0),
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_file_is_read_to_its_end(file_of, name):
    file = file_of(name)

    assert (file.rows, len(file.records), len(file.flaws)) == COUNTS[name]


def test_no_other_file_is_recognised_as_a_dataset(real):
    assert {row.path.rsplit("/")[-1] for row in describe(str(real))} == set(COUNTS)


def test_every_subject_occurs_once_in_its_prompt(file_of):
    for name in COUNTS:
        if "quake" in name.lower():
            continue
        assert all(record.prompt.count(record.subject) == 1 for record in file_of(name).records if record.subject), name


def test_the_target_of_zsre_is_never_taken_from_the_answers(real, file_of):
    import json

    rows = json.loads(next(real.rglob("zsre_mend_eval_portability_gpt4.json")).read_text())

    for row, record in zip(rows, file_of("zsre_mend_eval_portability_gpt4.json").records, strict=True):
        assert record.target_new == row["alt"].strip()
        assert record.ground_truth == row["answers"][0].strip()


def test_every_natural_question_ends_in_a_question_mark(file_of):
    probes = [probe for record in file_of("zsre_mend_train-1k.json").records for probe in record.locality]

    assert len(probes) == 998
    assert all(probe.prompt.startswith("nq question: ") and probe.prompt.endswith("?") for probe in probes)
    assert not any(probe.prompt.endswith("??") for probe in probes)


def test_most_flat_rephrases_are_generation_prompts_of_the_original_and_none_becomes_a_rephrase(file_of):
    flat = {record.id: record for record in file_of("counterfact-edit.json").records}
    pairs = [
        (record, flat[record.id])
        for record in file_of("counterfact_portability_gpt4.json").records
        if record.id in flat
    ]

    generated = sum(other.generation_prompts[0] in record.generation_prompts for record, other in pairs)

    assert generated >= 0.8 * len(pairs)
    assert not any(other.rephrases for _, other in pairs)
    assert all(len(record.rephrases) == 2 and len(record.locality) == 10 for record, _ in pairs)


def test_nearly_every_paraphrase_is_cut_to_the_sentence_about_its_subject(file_of):
    records = file_of("counterfact_portability_gpt4.json").records
    stripped = [
        (text, strip_distractor(text, record.subject), record.subject)
        for record in records
        for text in record.rephrases
    ]

    assert sum(before != after for before, after, _ in stripped) == 2052
    assert all(subject in after for _, after, subject in stripped)
    assert sum(after.startswith(subject) for _, after, subject in stripped) == 1589
    assert sum(len(after) < 120 for _, after, _ in stripped) > 0.97 * len(stripped)


def test_edit_and_train_files_share_subjects_and_the_pools_share_none(real, file_of):
    edit, train = (
        {record.subject for record in file_of(name).records}
        for name in ("counterfact-edit.json", "counterfact-train.json")
    )
    assert len(edit & train) > 500

    data = load(resolve("counterfact", str(real), 750, train=1000, unrelated=200))

    edited = {record.subject.casefold() for record in data.edits}
    pools = (*data.train, *data.unrelated)
    assert not edited & {record.subject.casefold() for record in pools}
    assert not {r.subject for r in data.train} & {r.subject for r in data.unrelated}
    assert not any(f" {subject} " in f" {r.prompt.casefold()} " for r in pools for subject in edited)


@pytest.mark.parametrize("name", ["zsre", "counterfact"])
def test_no_record_of_the_dev_split_is_scored_or_learned_from_in_a_test(real, file_of, name):
    edited = {"zsre": "ZsRE-test-all.json", "counterfact": "counterfact_portability_gpt4.json"}[name]
    dev = {record.prompt for record in file_of(edited).records if is_dev(name, record.id)}

    data = load(resolve(name, str(real), 700, train=1000, unrelated=50))

    assert not dev & {record.prompt for record in (*data.edits, *data.train, *data.unrelated)}
    assert all(record.ground_truth for record in (*data.train, *data.unrelated))


def test_the_paper_scale_of_zsre_is_available(real):
    assert len(load(resolve("zsre", str(real), 1000, split="all", train=10, unrelated=10)).edits) == 1000


@pytest.mark.parametrize(
    ("name", "expected", "left_out"),
    [
        ("zsre", Conflicts(unchanged=34, rephrases=10, shared_rephrases=4), 44),
        ("counterfact", Conflicts(facts=1, locality=16), 17),
    ],
)
def test_the_contradictions_of_the_papers_edits_are_known_and_can_be_left_out(real, name, expected, left_out):
    kept, dropped = (
        select(DataRef(name, str(real), 1000, split="all", conflicts=conflicts)) for conflicts in ("keep", "drop")
    )

    assert count(kept.edits) == expected
    assert not count(dropped.edits)
    assert (len(dropped.edits), dropped.contradictory) == (1000, left_out)


def test_planning_needs_neither_torch_nor_pandas():
    code = (
        "import sys; import harness.data.load, harness.data.show, harness.data.fetch; "
        "sys.exit(str({'torch', 'pandas', 'transformers', 'mlflow', 'numpy'} & set(sys.modules)) "
        "if {'torch', 'pandas', 'transformers', 'mlflow', 'numpy'} & set(sys.modules) else 0)"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
