"""The append-only cache: whatever is taken back and written anew, it equals reading each row from the start."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.onceedit.slots import Slots, common_prefix
from tests.helpers.any_architecture import ANY_ARCHITECTURE, N_IDS, any_architecture, hidden_alone, tolerance

ids = st.integers(0, N_IDS - 1)


@st.composite
def histories(draw):
    """Rows of a batch over several steps: each step cuts a row back anywhere and writes something after the cut."""
    rows = draw(st.lists(st.lists(ids, min_size=1, max_size=9), min_size=1, max_size=3))
    steps = [rows]
    for _ in range(draw(st.integers(1, 4))):
        rows = []
        for row in steps[-1]:
            kept = draw(st.integers(0, len(row)))
            rows.append(row[:kept] + draw(st.lists(ids, min_size=not kept, max_size=4)))
        steps.append(rows)
    return steps


@pytest.mark.parametrize("name", ANY_ARCHITECTURE)
@given(history=histories())
@settings(max_examples=25, deadline=None)
def test_the_cache_equals_computing_everything_again(name, history):
    model = any_architecture(name)
    slots = Slots(model, len(history[0]))
    for rows in history:
        hidden_BD = slots.hold(rows)
        for row, hidden_D in zip(rows, hidden_BD, strict=True):
            assert torch.allclose(hidden_D, hidden_alone(model, row), rtol=0, atol=tolerance(name))


@pytest.mark.parametrize("name", ANY_ARCHITECTURE)
def test_rows_may_be_given_up_and_the_others_go_on(name):
    model = any_architecture(name)
    slots = Slots(model, 3)
    slots.hold([[5, 6, 7, 8, 9, 10, 11], [5], [12, 13, 14]])
    slots.keep([0, 2])
    slots.hold([[5, 6, 7, 20, 21, 22, 23], [12, 13, 14]])
    slots.keep([1])
    hidden_BD = slots.hold([[12, 13, 30, 31]])
    assert torch.allclose(hidden_BD[0], hidden_alone(model, [12, 13, 30, 31]), rtol=0, atol=tolerance(name))


def test_only_what_is_new_is_fed():
    slots = Slots(any_architecture("llama"), 2)
    fed = []
    for rows in ([[1, 2, 3], [4]], [[1, 2, 3, 9], [4]], [[1, 2, 3, 9], [4]], [[1, 2, 8, 9], [4, 5, 6]]):
        slots.hold(rows)
        fed.append(slots.n_fed)
    assert fed == [4, 5, 5, 9]


def test_a_row_cut_back_to_its_beginning_feeds_its_last_id_again():
    model = any_architecture("llama")
    slots = Slots(model, 1)
    slots.hold([[1, 2, 3, 4]])
    hidden_BD = slots.hold([[1, 2]])
    assert slots.n_fed == 5
    assert torch.allclose(hidden_BD[0], hidden_alone(model, [1, 2]))


def test_nothing_moves_in_the_cache():
    slots = Slots(any_architecture("mistral"), 2)
    slots.hold([[1, 2, 3, 4, 5, 6, 7], [8, 9]])
    before = [(layer.keys.clone(), layer.values.clone()) for layer in slots._cache.layers]
    slots.hold([[1, 2, 30], [8, 9, 10, 11]])
    for (keys, values), layer in zip(before, slots._cache.layers, strict=True):
        assert keys.shape[-2] == 7
        assert layer.keys.shape[-2] == 9
        assert layer.keys[..., :7, :].equal(keys)
        assert layer.values[..., :7, :].equal(values)


def test_a_slot_knows_the_place_of_its_id_or_that_nobody_sees_it():
    slots = Slots(any_architecture("llama"), 2)
    slots.hold([[1, 2, 3], [8]])
    slots.hold([[1, 7], [8, 9, 10]])
    assert slots._positions_BS.tolist() == [[0, -1, -1, -1, 1], [-1, -1, 0, 1, 2]]


@given(st.lists(ids), st.lists(ids), st.lists(ids))
def test_the_common_prefix_is_the_longest_one(shared, left, right):
    n = common_prefix(shared + left, shared + right)
    assert n >= len(shared)
    assert (shared + left)[:n] == (shared + right)[:n]
    assert (shared + left)[: n + 1] != (shared + right)[: n + 1] or n == min(len(left), len(right)) + len(shared)
