import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.load import strip_distractor, without_distractors
from harness.data.reading import read
from tests.data.rows import COUNTERFACT, write

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
def test_the_sentence_before_the_one_of_the_subject_is_cut(paraphrase, subject, expected):
    assert strip_distractor(paraphrase, subject) == expected


@pytest.mark.parametrize(("paraphrase", "subject"), KEPT)
def test_nothing_is_cut_without_a_boundary_before_the_subject(paraphrase, subject):
    assert strip_distractor(paraphrase, subject) == paraphrase


def test_a_subject_with_periods_keeps_them_behind_a_distractor():
    text = "It closed. I.R.S. Records Presents aired on"

    assert strip_distractor(text, "I.R.S. Records Presents") == "I.R.S. Records Presents aired on"


@given(st.text(max_size=60), st.text(min_size=1, max_size=12), st.text(max_size=20))
def test_a_cut_leaves_the_subject_and_all_that_follows(before, subject, after):
    text = before + subject + after

    stripped = strip_distractor(text, subject)

    assert text.endswith(stripped)
    assert subject in stripped
    assert strip_distractor(stripped, subject) == stripped


def test_only_the_rephrases_of_a_record_are_cut(tmp_path):
    record = read(write(tmp_path / "a.json", [COUNTERFACT])).records[0]

    stripped = without_distractors(record)

    assert stripped.rephrases == ("Spike Hughes is native to", "Spike Hughes was born in")
    assert stripped.generation_prompts == record.generation_prompts
