import pytest

from harness.data.pools import belongs, is_dev
from harness.errors import UserError


def test_one_record_in_four_is_dev():
    share = sum(is_dev("zsre", str(number)) for number in range(20_000)) / 20_000

    assert share == pytest.approx(1 / 4, abs=0.01)


def test_the_split_never_moves():
    assert [number for number in range(40) if is_dev("counterfact", str(number))] == FIRST_DEV


def test_the_data_sets_are_split_independently():
    ids = [str(number) for number in range(1000)]

    assert [is_dev("zsre", each) for each in ids] != [is_dev("counterfact", each) for each in ids]


@pytest.mark.parametrize("record_id", ["0", "17", "a0768090193a985f"])
def test_every_record_is_in_exactly_one_of_test_and_dev(record_id):
    assert belongs("zsre", record_id, "test") != belongs("zsre", record_id, "dev")
    assert belongs("zsre", record_id, "all")


def test_an_unknown_split_is_reported_with_the_nearest():
    with pytest.raises(UserError, match="unknown split 'tset' \\(did you mean 'test'"):
        belongs("zsre", "1", "tset")


FIRST_DEV = [4, 6, 7, 8, 10, 12, 15, 25, 29, 32, 36]
