"""The retry policy: what follows from what is settled, what SLURM jobs have and how they ended."""

import pytest

from harness.plan.estimate import Resources
from harness.plan.job import Job
from slurm.launch import Ending, Submission
from slurm.profile import ResourceClass
from slurm.queue import State
from slurm.retry import FALSE_STARTS, LOSSES, PASSED_OVER, Again, Decision, GivenUp, decide, first_class, verdict

CLASSES = [
    ResourceClass(name=name, mem_gb=mem_gb, time_min=60) for name, mem_gb in (("small", 1), ("medium", 2), ("large", 3))
]


def job(place, needs, mem_gb):
    """Nothing but what the policy looks at."""
    return Job(None, 0, place, place, needs, (), Resources(mem_gb * 2**30, 1.0))


CELL = job("cells/a", ("artifacts/x/1",), mem_gb=1)


def ended(state, *, running=CELL.place, resource="small", has_moved=False, signal=None, begun=True):
    """A SLURM job that had the cell and ended."""
    ending = Ending(state, f"{state} on node1", begun, running if begun else "", has_moved, signal)
    return Submission("001-1", resource, (CELL.place, "cells/b"), "2026-01-01T00:00:00+00:00", "7_1", ending)


def test_a_job_is_given_the_first_class_that_is_large_enough_or_the_largest():
    assert [first_class(job("cells/b", (), mem_gb), CLASSES) for mem_gb in (1, 2, 3, 9)] == [0, 1, 2, 2]


def after(*jobs):
    return verdict(CELL, jobs, CLASSES)


def is_given_up(fate, words):
    return isinstance(fate, GivenUp) and all(word in fate.reason for word in words)


@pytest.mark.parametrize("state", [State.OUT_OF_MEMORY, State.TIMEOUT])
def test_too_little_memory_or_time_is_fixed_by_the_next_class_once(state):
    first, second = ended(state), ended(state, resource="medium")
    assert after(first) == Again(1)
    assert is_given_up(after(first, second), [state, "7_1", "class medium", "again"])


def test_in_the_largest_class_there_is_nothing_more_to_give():
    assert is_given_up(after(ended(State.TIMEOUT, resource="large")), ["timeout", "no larger class"])


def test_a_sequence_that_moves_may_run_out_of_time_as_often_as_it_moves():
    moves = [ended(State.TIMEOUT, has_moved=True)] * 20
    assert after(*moves) == Again(0)
    assert after(*moves, ended(State.TIMEOUT)) == Again(1)


def test_a_sequence_that_moves_and_runs_out_of_memory_is_not_excused():
    assert after(ended(State.OUT_OF_MEMORY, has_moved=True)) == Again(1)


@pytest.mark.parametrize("state", [State.NODE_FAIL, State.PREEMPTED, State.GONE])
def test_a_lost_job_is_followed_by_another_of_its_class(state):
    jobs = [ended(State.TIMEOUT)] + [ended(state, resource="medium")] * LOSSES
    assert after(*jobs) == Again(1), "the class that it was promoted to"
    assert isinstance(after(*jobs, ended(state, resource="medium")), GivenUp)


def test_a_killed_process_is_followed_by_another_once():
    killed = ended(State.FAILED, signal=9)
    assert after(killed) == Again(0)
    assert isinstance(after(killed, killed), GivenUp)


def test_a_process_that_ends_by_itself_would_do_so_again():
    assert isinstance(after(ended(State.FAILED)), GivenUp)
    assert isinstance(after(ended(State.COMPLETED)), GivenUp), "its folder would be there"


def test_what_somebody_cancels_while_it_runs_or_waits_stays_cancelled():
    assert isinstance(after(ended(State.CANCELLED)), GivenUp)
    assert isinstance(after(ended(State.CANCELLED, begun=False)), GivenUp)


@pytest.mark.parametrize("state", [State.CANCELLED, State.TIMEOUT, State.OUT_OF_MEMORY, State.FAILED, State.NODE_FAIL])
def test_the_rest_of_a_batch_is_not_charged(state):
    assert after(*[ended(state, running="cells/b")] * 20) == Again(0)


@pytest.mark.parametrize("state", [State.FAILED, State.TIMEOUT, State.NODE_FAIL, State.GONE])
def test_jobs_that_never_begin_any_work_end_after_some(state):
    start = ended(state, begun=False)
    assert after(*[start] * (FALSE_STARTS - 1)) == Again(0)
    assert is_given_up(after(*[start] * FALSE_STARTS), ["before it began any work"])


def test_jobs_that_find_needs_missing_end_too():
    passed = ended(State.COMPLETED, begun=False)
    assert after(*[passed] * (PASSED_OVER - 1)) == Again(0)
    assert isinstance(after(*[passed] * PASSED_OVER), GivenUp)


def test_a_class_that_the_profile_no_longer_has_counts_as_the_first():
    assert after(ended(State.TIMEOUT, resource="tiny")) == Again(1)


def test_a_job_that_lives_has_no_verdict():
    with pytest.raises(ValueError, match="has not ended"):
        verdict(CELL, [Submission("001-1", "small", (CELL.place,), "2026-01-01T00:00:00+00:00", "7")], CLASSES)


ARTIFACT = job("artifacts/x/1", (), mem_gb=2)


def decision(unsettled=(ARTIFACT, CELL), failed=None, covered=(), left=None):
    return decide(unsettled, failed or {}, covered, left or {}, CLASSES)


def test_everything_is_submitted_at_once_needs_first():
    assert list(decision().submit.items()) == [(ARTIFACT.place, 1), (CELL.place, 0)]


def test_what_a_job_has_is_not_submitted_again_and_can_be_waited_for():
    assert decision(covered={CELL.place}).submit == {ARTIFACT.place: 1}
    assert decision(covered={ARTIFACT.place}).submit == {CELL.place: 0}
    assert decision(covered={ARTIFACT.place, CELL.place}) == Decision()


def test_a_failed_need_fails_what_needs_it_with_its_reason():
    made = decision(unsettled=[CELL], failed={ARTIFACT.place: "it rained"})
    assert made.give_up == {CELL.place: "it rained"}
    assert made.submit == {}


def test_a_need_that_is_given_up_fails_what_needs_it_in_the_same_breath():
    made = decision(left={ARTIFACT.place: [ended(State.FAILED, running=ARTIFACT.place)]})
    assert set(made.give_up) == {ARTIFACT.place, CELL.place}
    assert made.give_up[CELL.place] == made.give_up[ARTIFACT.place]


def test_a_job_is_left_to_say_itself_that_its_need_failed():
    assert decision(unsettled=[CELL], failed={ARTIFACT.place: "it rained"}, covered={CELL.place}) == Decision()


@pytest.mark.parametrize(
    "state", [state for state in State if state not in {State.PENDING, State.RUNNING, State.UNREACHABLE}]
)
@pytest.mark.parametrize("running", [CELL.place, "cells/b", ""])
@pytest.mark.parametrize("signal", [None, 9])
def test_no_way_of_ending_is_repeated_for_ever_unless_something_else_was_settled(state, running, signal):
    """One that was at another job of the batch has settled or charged that one, so the batch gets shorter."""
    lost = ended(state, running=running, begun=bool(running), signal=signal)
    fates = [after(*[lost] * number) for number in range(1, 12)]
    assert isinstance(fates[-1], GivenUp) or running == "cells/b"
