import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.evaluation.words import answer_of, contains, exact_match, f1, normalised

WORDS = st.text("ab .,)", max_size=12)


@pytest.mark.parametrize(
    ("answer", "wanted", "exact", "contained", "overlap"),
    [
        ("English", "English", 1, 1, 1.0),
        ("the English.", "English", 1, 1, 1.0),
        ("English. She was born in 1917.", "English", 1, 1, 2 / 7),
        ("St. Louis, Missouri. It lies", "St. Louis, Missouri", 1, 1, 6 / 8),
        ("French, not English", "English", 0, 1, 0.5),
        ("Englishman", "English", 0, 0, 0.0),
        ("Reykjav\u0069\u0301k", "Reykjavík", 1, 1, 1.0),
        ("", "English", 0, 0, 0.0),
        ("New York City", "York New", 0, 0, 0.8),
        ("A", "A", 1, 1, 1.0),
        ("A. Because it is.", "A", 1, 1, 2 / 5),
        ("A) Paris", "A", 1, 1, 2 / 3),
        ("(A) Paris", "A", 1, 1, 2 / 3),
        ("A: x", "A", 1, 1, 2 / 3),
        ("B - Paris", "B", 1, 1, 2 / 3),
        ("B, Paris", "A", 0, 0, 0.0),
        ("A song, not a film", "A", 0, 1, 2 / 6),
        ("Yes, the record label is Island.", "Yes", 1, 1, 2 / 6),
        ("No, yes", "Yes", 0, 1, 2 / 3),
        ("Yes-man", "Yes", 0, 0, 0.0),
        ("Paris, Texas", "Paris", 0, 1, 2 / 3),
        ("Yes (band)", "Yes, please", 0, 0, 0.5),
        ("A cat", "cat", 1, 1, 1.0),
        ("B", "A", 0, 0, 0.0),
        ("", "A", 0, 0, 0.0),
        ("", "?", 0, 0, 0.0),
    ],
)
def test_answers_are_compared_as_words(answer, wanted, exact, contained, overlap):
    assert exact_match(answer, wanted) == exact
    assert contains(answer, wanted) == contained
    assert f1(answer, wanted) == pytest.approx(overlap)


def test_the_answer_is_the_first_line_with_something_on_it():
    assert answer_of("\n\n  Paris \nLondon") == "Paris"
    assert answer_of(" \n") == ""


@given(WORDS, WORDS)
def test_the_three_comparisons_agree_where_they_must(answer, wanted):
    if normalised(answer) == normalised(wanted):
        assert exact_match(answer, wanted) == contains(answer, wanted) == f1(answer, wanted) == 1
    if exact_match(answer, wanted):
        assert contains(answer, wanted)
    assert f1(answer, wanted) == f1(wanted, answer)
