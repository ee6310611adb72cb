import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.pools import Guard, belongs, draw, is_dev
from harness.errors import UserError
from harness.records import EditRecord, Probe

FIRST_DEV = [4, 6, 7, 8, 10, 12, 15, 25, 29, 32, 36]


def test_one_record_in_four_is_dev():
    share = sum(is_dev("zsre", str(number)) for number in range(20_000)) / 20_000

    assert share == pytest.approx(1 / 4, abs=0.01)


def test_the_split_never_moves():
    assert [number for number in range(40) if is_dev("counterfact", str(number))] == FIRST_DEV


def test_the_datasets_are_split_independently():
    ids = [str(number) for number in range(1000)]

    assert [is_dev("zsre", each) for each in ids] != [is_dev("counterfact", each) for each in ids]


@pytest.mark.parametrize("record_id", ["0", "17", "a0768090193a985f"])
def test_every_record_is_in_exactly_one_of_test_and_dev(record_id):
    assert belongs("zsre", record_id, "test") != belongs("zsre", record_id, "dev")
    assert belongs("zsre", record_id, "all")


def test_an_unknown_split_is_reported_with_the_nearest():
    with pytest.raises(UserError, match="unknown split 'tset' \\(did you mean 'test'"):
        belongs("zsre", "1", "tset")


def fact(subject: str, prompt: str = "{} speaks", **probes) -> EditRecord:
    return EditRecord(f"id {subject}", prompt.format(subject), subject, "English", "French", **probes)


EDIT = fact("Ann Lee", rephrases=("Hear Ann Lee talk in",), locality=(Probe("Bob Hill speaks", "French"),))


def test_a_record_of_another_subject_is_admitted():
    assert Guard([EDIT]).admits(fact("Carl Moss"))


def test_an_edited_subject_is_refused_in_any_case():
    assert not Guard([EDIT]).admits(fact("ANN LEE", "{} was born in"))


def test_an_edited_subject_is_refused_within_the_prompt_of_another():
    assert not Guard([EDIT]).admits(fact("the house", "Near {} of Ann Lee's mother they speak"))
    assert Guard([EDIT]).admits(fact("the house", "Near {} of Ann Leeds they speak"))


def test_the_subject_of_a_scored_probe_is_refused():
    assert not Guard([EDIT]).admits(fact("Bob Hill", "The mother tongue of {} is"))


def test_a_question_without_a_subject_is_refused_where_an_edited_subject_occurs():
    question = EditRecord("q", "What does ann lee speak?", "", "French", "French")
    other = EditRecord("o", "What does Joan speak?", "", "French", "French")

    assert not Guard([EDIT]).admits(question)
    assert Guard([EDIT]).admits(other)


def test_an_edited_subject_without_words_does_not_exclude_everything():
    assert Guard([fact("!!!")]).admits(fact("Carl Moss"))


def test_probes_about_an_edited_subject_are_removed_from_a_pool_record():
    record = fact("Carl Moss", locality=(Probe("Ann Lee was born in", "Rome"), Probe("Dora was born in", "Rome")))

    assert Guard([EDIT]).trimmed(record).locality == (Probe("Dora was born in", "Rome"),)


def test_a_scored_prompt_is_removed_from_a_pool_record():
    record = fact("Carl Moss", rephrases=("Bob Hill speaks", "Hear Carl Moss talk in"))

    assert Guard([EDIT]).trimmed(record).rephrases == ("Hear Carl Moss talk in",)


def test_the_pools_share_no_subject():
    twice = [fact(f"Person{n}", prompt) for n in range(30) for prompt in ("{} speaks", "{} was born in")]

    train, unrelated = draw([EDIT], [twice], 25, 25)

    assert len(train) == len(unrelated) == 25
    assert not {record.subject for record in train} & {record.subject for record in unrelated}


def test_the_pools_do_not_depend_on_the_order_of_the_candidates():
    candidates = [fact(f"Person{n}") for n in range(40)]

    assert draw([EDIT], [candidates], 10, 5) == draw([EDIT], [candidates[::-1]], 10, 5)


def test_the_unrelated_pool_does_not_depend_on_the_size_of_the_train_pool():
    candidates = [fact(f"Person{n}") for n in range(40)]

    assert draw([EDIT], [candidates], 3, 5)[1] == draw([EDIT], [candidates], 30, 5)[1]


def test_more_edits_only_remove_the_records_that_overlap_with_them():
    candidates = [fact(f"Person{n}") for n in range(40)]
    few, _ = draw([EDIT], [candidates], 10, 0)
    more, _ = draw([EDIT, few[3]], [candidates], 10, 0)

    assert more[:9] == few[:3] + few[4:]


def test_the_preferred_candidates_come_first():
    first, second = [fact(f"First{n}") for n in range(3)], [fact(f"Second{n}") for n in range(5)]

    train, unrelated = draw([EDIT], [first, second], 4, 1)

    assert {record.subject[:5] for record in (*unrelated, *train[:2])} == {"First"}
    assert len(train) == 4


def test_a_prompt_is_drawn_once():
    copies = [fact("Carl Moss"), EditRecord("other", "Carl Moss speaks", "Carl Moss", "Welsh", "French")]

    assert len(draw([EDIT], [copies], 2, 0)[0]) == 1


WORDS = st.lists(st.sampled_from(["Ann", "ann", "Lee", "lee's", "of", "St.", "Leeds"]), min_size=1, max_size=4)


@given(WORDS.map(" ".join), WORDS.map(" ".join))
def test_mentions_agree_with_a_plain_whole_word_search(subject, prompt):
    bounded = r"\b" + r"\W+".join(re.findall(r"\w+", subject)) + r"\b"
    expected = re.search(bounded, prompt, re.IGNORECASE) is None

    question = EditRecord("q", prompt, "", "French", "French")

    assert Guard([fact(subject, "{} speaks")]).admits(question) == expected
