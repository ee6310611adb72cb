"""The retry policy: what to submit next, given the files on disk and how SLURM jobs ended. Pure functions.

What is settled (DONE or FAILED on the disk) stays. What a live SLURM job covers is waited for. Everything else is submitted, a
second time if need be, or given up with a reason, by how the SLURM jobs ended that had it:

* It was running when its SLURM job ran out of memory or time: once more, in the next resource class. (Of GPU memory, or of what
  a child process needs, only a job's own process knows; it leaves the job unsettled if that class has more.) A sequence that kept
  a block in its time continues from there, as often as it keeps one.
* It was running when its SLURM job lost its node or its place: again, `LOSSES` times. When a signal killed its process: again,
  once.
* It was running, or its SLURM job had yet to begin, when somebody cancelled that: given up.
* It was running when its process ended by itself without settling it: given up, because it would end so again.
* Its SLURM job never reached it: again. After `FALSE_STARTS` that never reached any job, it is given up.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from harness.plan import estimate
from harness.plan.job import Job
from slurm.launch import Submission
from slurm.profile import ResourceClass
from slurm.queue import State

LOSSES = 2
FALSE_STARTS = 3
PASSED_OVER = 10
"""SLURM jobs that ended well without reaching a job, because what it needs was missing, before it is given up."""

TOO_SMALL = {State.OUT_OF_MEMORY, State.TIMEOUT}
LOST = {State.NODE_FAIL, State.PREEMPTED, State.GONE}


@dataclass(frozen=True, slots=True)
class Again:
    """To be submitted, with the resource class of this number."""

    resource: int


@dataclass(frozen=True, slots=True)
class GivenUp:
    """To be recorded as failed."""

    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do.

    Attributes:
        submit: number of the resource class by place, needs before what needs them.
        give_up: reason by place.
    """

    submit: dict[str, int] = field(default_factory=dict)
    give_up: dict[str, str] = field(default_factory=dict)


def decide(
    jobs: Sequence[Job],
    failed: Mapping[str, str],
    covered: Collection[str],
    ended: Mapping[str, Sequence[Submission]],
    classes: Sequence[ResourceClass],
) -> Decision:
    """What to submit and what to give up.

    Args:
        jobs: those that are not settled, needs before what needs them. A need that is not among them is built, or in `failed`.
        failed: reasons of jobs that have failed in this launch, by place.
        covered: places of jobs that a SLURM job may still settle, or one that ended so recently that its results may not be
            visible yet.
        ended: submissions whose SLURM jobs have ended, by place of the jobs that they left unsettled, in order.
        classes: the resource classes, the smallest first.
    """
    made = Decision()
    broken = dict(failed)
    unsettled = {job.place for job in jobs}
    for job in jobs:
        if job.place in covered:
            continue
        fate = verdict(job, ended.get(job.place, ()), classes)
        if (need := next((need for need in job.needs if need in broken), None)) is not None:
            fate = GivenUp(broken[need])
        if isinstance(fate, GivenUp):
            made.give_up[job.place] = broken[job.place] = fate.reason
        elif all(need not in unsettled or need in covered or need in made.submit for need in job.needs):
            made.submit[job.place] = fate.resource
    return made


def verdict(job: Job, ended: Sequence[Submission], classes: Sequence[ResourceClass]) -> Again | GivenUp:
    """What to do with a job after all submissions that covered it have ended without settling it."""
    resource = first_class(job, classes)
    names = [each.name for each in classes]
    promoted = losses = kills = false_starts = passed_over = 0
    for submission in ended:
        ending = submission.ending
        if ending is None:
            raise ValueError(f"{submission.batch} has not ended")
        used = names.index(submission.resource) if submission.resource in names else resource
        resource = max(resource, used)
        what = f"{ending.words} (job {submission.id}, class {submission.resource})"
        is_own = ending.place == job.place
        if ending.state is State.CANCELLED and (is_own or not ending.has_begun):
            return GivenUp(what)
        if is_own and ending.state in TOO_SMALL:
            if ending.has_moved and ending.state is State.TIMEOUT:
                continue
            promoted += 1
            if promoted > 1 or used + 1 >= len(classes):
                return GivenUp(f"{what}, {'again' if promoted > 1 else 'and there is no larger class'}")
            resource = used + 1
        elif is_own and ending.state in LOST:
            losses += 1
            if losses > LOSSES:
                return GivenUp(f"{what}; {losses} jobs were lost so")
        elif is_own and ending.signal is not None:
            kills += 1
            if kills > 1:
                return GivenUp(f"{what}, again")
        elif is_own:
            return GivenUp(what)
        elif ending.state is State.COMPLETED:
            passed_over += 1
            if passed_over >= PASSED_OVER:
                return GivenUp(f"{passed_over} jobs found that what it needs was missing, the last was {submission.id}")
        elif not ending.has_begun:
            false_starts += 1
            if false_starts >= FALSE_STARTS:
                return GivenUp(f"{what} before it began any work, as {false_starts - 1} jobs before it")
    return Again(resource)


def first_class(job: Job, classes: Sequence[ResourceClass]) -> int:
    """Number of the first class that is large enough for a job, else of the largest."""
    needed = estimate.together([job])
    return next((number for number, each in enumerate(classes) if each.holds(needed)), len(classes) - 1)
