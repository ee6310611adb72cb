"""The launch folder: what was written is read again by the next driver, wherever the one before it was killed."""

import json

import pytest

from harness.store.store import Store
from slurm.launch import Ending, Launch, Submission, launches
from slurm.queue import State

PLACES = ["cells/a-1", "cells/b-2", "cells/c-3"]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def launch(store):
    return Launch.create(store, "small", "mini", {"profile": {"launcher": "slurm"}})


def submitted(launch):
    launch.ask("small", [("00001-a", PLACES[:2]), ("00002-c", PLACES[2:])])
    launch.taken({"001-00001-a": "5_0", "001-00002-c": "5_1"})
    return launch


ENDING = Ending(State.TIMEOUT, "timeout on node1 after 60 s", True, PLACES[0], has_moved=True)


def test_another_driver_reads_what_one_wrote(launch):
    submitted(launch).ended("001-00001-a", ENDING)
    first, second = Launch(launch.path).submissions
    assert (first.batch, first.id, first.resource, first.covers) == ("001-00001-a", "5_0", "small", tuple(PLACES[:2]))
    assert first.ending == ENDING
    assert second.ending is None
    assert Launch(launch.path).submissions == launch.submissions


def test_batches_have_names_of_their_own_whoever_asks(launch):
    names = [each.batch for each in launch.ask("small", [("00001-a", PLACES[:1])])]
    names += [each.batch for each in Launch(launch.path).ask("small", [("00001-a", PLACES[:1])])]
    assert names == ["001-00001-a", "002-00001-a"]


def test_a_batch_is_known_before_slurm_is_asked_and_has_no_id_then(launch):
    launch.ask("small", [("00001-a", PLACES)])
    assert [(each.id, each.covers) for each in Launch(launch.path).submissions] == [("", tuple(PLACES))]


def test_a_refused_batch_is_no_submission(launch):
    launch.ask("small", [("00001-a", PLACES)])
    launch.refused(["001-00001-a"], "invalid partition")
    assert launch.submissions == Launch(launch.path).submissions == []


def test_what_is_to_be_run_again_no_longer_counts_and_what_comes_after_does(launch):
    submitted(launch).ended("001-00001-a", ENDING)
    launch.again([PLACES[0], "cells/unknown"])
    launch.ask("large", [("00001-a", PLACES[:1])])
    assert [each.covers for each in Launch(launch.path).submissions] == [(PLACES[1],), (PLACES[2],), (PLACES[0],)]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_a_killed_driver_did_not_finish_is_as_if_not_written(launch, cut):
    submitted(launch)
    file = launch.path / "jobs.jsonl"
    whole = launch.submissions
    file.write_bytes(
        file.read_bytes() + json.dumps({"asked": "002-x", "resource": "r", "covers": [], "time": ""}).encode()[:cut]
    )
    after = Launch(launch.path)
    assert after.submissions == whole
    after.ended("001-00002-c", ENDING)
    assert Launch(launch.path).submissions == [whole[0], Submission(**{**_fields(whole[1]), "ending": ENDING})]


@pytest.mark.parametrize("left", [10, 30])
def test_ids_are_known_of_all_jobs_of_an_array_or_of_none(launch, left):
    """Of a half the other half would be taken for refused, and submitted again while it runs."""
    submitted(launch)
    file = launch.path / "jobs.jsonl"
    file.write_bytes(file.read_bytes()[:-left])
    assert [each.id for each in Launch(launch.path).submissions] == ["", ""]


def test_what_a_full_disk_made_of_lines_hides_no_other(launch):
    submitted(launch)
    file = launch.path / "jobs.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    strange = [
        b"\0" * 20 + b"\n",
        '{"batch": "001-ä'.encode()[:-1] + b"\n",
        b'{"batch": "009-x", "refused": "limit"}\n',
    ]
    file.write_bytes(b"".join([*lines[1:], *strange]))
    after = Launch(launch.path)
    assert [(each.batch, each.id) for each in after.submissions] == [("001-00002-c", "5_1")]
    after.ended("001-00002-c", ENDING)
    assert Launch(launch.path).submissions[0].ending == ENDING


def _fields(submission):
    return {name: getattr(submission, name) for name in submission.__slots__}


def test_a_launch_is_found_until_it_is_over(store, launch):
    other = Launch.create(store, "small", "mini", {})
    assert {each.name for each in launches(store)} == {launch.name, other.name}
    launch.close("cancelled")
    assert launch.is_over
    assert [each.name for each in launches(store)] == [other.name]
    launch.reopen()
    assert len(launches(store)) == 2


def test_the_oldest_launch_comes_first_whatever_its_suite_is_called(store, monkeypatch):
    for name, time in (("zebra.mini", "20260101T000000"), ("ant.mini", "20260102T000000")):
        folder = store.root / "launches" / f"{name}-{time}-00ff"
        folder.mkdir(parents=True)
        (folder / "launch.json").write_text("{}")
    assert [each.name.partition(".")[0] for each in launches(store)] == ["zebra", "ant"]


def test_a_store_without_launches_has_none(store):
    assert launches(store) == []
