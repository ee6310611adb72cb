"""Edit schedules, and the records scored at each point."""

import dataclasses
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.load import load
from harness.records import DataRef, FirstEdits
from harness.suite.schedule import Schedule
from tests.helpers.small_suites import records, write_records


def sequences():
    points = st.lists(st.integers(1, 60), min_size=1, max_size=5).map(lambda found: tuple(sorted(set(found))))
    return st.builds(Schedule, st.just("sequential"), st.integers(1, 60), points)


@pytest.mark.parametrize(
    ("schedule", "edits", "fitted"),
    [
        (Schedule("sequential", 20, (10, 50, 100)), 100, Schedule("sequential", 20, (10, 50, 100))),
        (Schedule("sequential", 20, (10, 50, 100)), 50, Schedule("sequential", 20, (10, 50))),
        (Schedule("sequential", 20, (10, 50, 100)), 8, Schedule("sequential", 8, (8,))),
        (Schedule("sequential", 20, (10,)), 40, Schedule("sequential", 20, (10, 40))),
        (Schedule(), 8, Schedule()),
    ],
)
def test_points_beyond_the_end_move_to_the_end_which_is_always_scored(schedule, edits, fitted):
    assert schedule.within(edits) == fitted


def test_blocks_end_at_multiples_of_their_size_and_at_points():
    schedule = Schedule("sequential", 20, (10, 50))
    assert schedule.blocks(70) == [
        range(0, 10),
        range(10, 20),
        range(20, 40),
        range(40, 50),
        range(50, 60),
        range(60, 70),
    ]


@given(sequences(), st.integers(1, 60))
def test_every_edit_is_in_one_block_and_every_point_at_the_end_of_one(schedule, edits):
    blocks = schedule.blocks(edits)
    assert [place for block in blocks for place in block] == list(range(edits))
    assert all(1 <= len(block) <= schedule.block for block in blocks)
    assert set(schedule.points(edits)) <= {block.stop for block in blocks}
    assert schedule.points(edits)[-1] == edits
    assert schedule.within(edits).blocks(edits) == blocks


@given(st.integers(1, 60))
def test_a_batch_is_one_block_and_one_point(edits):
    assert Schedule().blocks(edits) == [range(edits)]
    assert Schedule().points(edits) == (edits,)


def test_the_identity_of_a_batch_omits_sequence_options():
    assert Schedule().identity() == {"kind": "batch"}
    assert Schedule("sequential", 2, (4,)).identity() == {"kind": "sequential", "block": 2, "score_at": [4]}


def test_first_edits_refer_to_the_whole_selection(tmp_path):
    whole = records(write_records(tmp_path))
    first = FirstEdits.of(whole, 3)
    assert first.whole == whole
    assert type(first.whole) is DataRef
    assert first.identity() == {**whole.identity(), "so_far": 3}
    assert first.identity() == FirstEdits.of(dataclasses.replace(whole, source="/elsewhere"), 3).identity()
    assert len({FirstEdits.of(whole, 3), FirstEdits.of(whole, 3), FirstEdits.of(whole, 4), whole}) == 3


def test_first_edits_keep_the_complete_pools(tmp_path):
    whole = records(write_records(tmp_path))
    data = load(whole)
    first = FirstEdits.of(whole, 3).cut(data)
    assert first.edits == data.edits[:3]
    assert (first.train, first.unrelated) == (data.train, data.unrelated)


def test_a_context_reads_a_file_once_for_all_points(tmp_path, monkeypatch):
    from harness.run import context

    whole, read = records(write_records(tmp_path)), []
    monkeypatch.setattr(context, "load_records", lambda ref: (read.append(ref), load(ref))[1])
    run = context.RunContext(SimpleNamespace(), "cpu", SimpleNamespace())
    assert [len(run.load_data(FirstEdits.of(whole, edits)).edits) for edits in (2, 5)] == [2, 5]
    assert len(run.load_data(whole).edits) == 8
    assert read == [whole]
