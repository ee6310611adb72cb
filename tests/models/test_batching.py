import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.models.batching import left_padded, length_sorted, right_padded

ROWS = [[7, 8, 9], [5], [6, 6]]
rows = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=9)


def test_right_padding_leaves_every_id_at_its_own_place():
    batch = right_padded(ROWS)
    assert batch.ids_BT.tolist() == [[7, 8, 9], [5, 0, 0], [6, 6, 0]]
    assert batch.mask_BT.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch.positions_BT.tolist() == [[0, 1, 2], [0, 0, 0], [0, 1, 0]]


def test_left_padding_ends_every_row_in_the_last_column():
    batch = left_padded(ROWS)
    assert batch.ids_BT.tolist() == [[7, 8, 9], [0, 0, 5], [0, 6, 6]]
    assert batch.mask_BT.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert batch.positions_BT.tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("pad", [left_padded, right_padded])
@given(rows=rows)
def test_the_mask_gives_the_rows_back(pad, rows):
    batch = pad(rows)
    assert [ids[mask == 1].tolist() for ids, mask in zip(batch.ids_BT, batch.mask_BT, strict=True)] == rows
    assert [
        positions[mask == 1].tolist() for positions, mask in zip(batch.positions_BT, batch.mask_BT, strict=True)
    ] == [list(range(len(row))) for row in rows]


@pytest.mark.parametrize("rows", [[], [[1], []]])
def test_a_batch_without_rows_or_with_an_empty_one_is_refused(rows):
    with pytest.raises(ValueError, match="needs rows"):
        left_padded(rows)


@given(rows=rows, size=st.integers(1, 12))
def test_batches_hold_every_index_once_shortest_first_and_none_is_too_large(rows, size):
    batches = list(length_sorted(rows, len, size))
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(rows)))
    assert [len(rows[index]) for index in order] == sorted(map(len, rows))
    assert all(0 < len(batch) <= size for batch in batches)


def test_rows_of_one_length_stay_in_order():
    assert list(length_sorted(["bb", "a", "cc", "b"], len, 3)) == [[1, 3, 0], [2]]


def test_a_batch_size_of_zero_is_refused():
    with pytest.raises(ValueError, match="batch size 0"):
        list(length_sorted(["a"], len, 0))
