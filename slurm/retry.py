"""What is to be done next, decided from what lies on the disk and how jobs ended; nothing is asked or done here.

What is settled (DONE or FAILED on the disk) stays. What a live job covers is waited for. Everything else is submitted, again if
need be, or given up with a reason, by how the jobs ended that had it:

* It was running when its job had too little memory or time: once more, with the next resource class. A sequence that kept a
  block in the time it had goes on from there, as often as it does so.
* It was running when its job lost its node or its place: again, `LOSSES` times. When a signal killed its process: again, once.
* It was running, or its job had yet to begin, when somebody cancelled the job: given up.
* It was running when its process ended by itself without settling it: given up, for it would end so again.
* Its job never came to it: again. After `FALSE_STARTS` jobs that never came to any task, it is given up.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from slurm.launch import Job
from slurm.queue import State

LOSSES = 2
FALSE_STARTS = 3
PASSED_OVER = 10
"""Jobs that ended well without coming to a task, because what it needs was not there, before it is given up."""

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
class Work:
    """A task as far as it matters here.

    Attributes:
        place: of its folder.
        needs: places of the artifacts that must be built before.
        resource: number of the resource class that it is given first.
    """

    place: str
    needs: tuple[str, ...]
    resource: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done.

    Attributes:
        submit: number of the resource class by place, needs before what needs them.
        give_up: reason by place.
    """

    submit: dict[str, int] = field(default_factory=dict)
    give_up: dict[str, str] = field(default_factory=dict)


def decide(
    works: Sequence[Work],
    failed: Mapping[str, str],
    covered: Collection[str],
    ended: Mapping[str, Sequence[Job]],
    classes: Sequence[str],
) -> Decision:
    """What to submit and what to give up.

    Args:
        works: tasks that are not settled, needs before what needs them. A need that is not among them is built, or in `failed`.
        failed: reasons of tasks that have failed in this launch, by place.
        covered: places of tasks that a job has which may still settle them, or which ended so lately that its results may
            not be seen yet.
        ended: jobs that have ended, by place of the tasks that they left unsettled, in the order of their submission.
        classes: names of the resource classes, the smallest first.
    """
    made = Decision()
    broken = dict(failed)
    open_ = {work.place for work in works}
    for work in works:
        if work.place in covered:
            continue
        fate = verdict(work, ended.get(work.place, ()), classes)
        if (need := next((need for need in work.needs if need in broken), None)) is not None:
            fate = GivenUp(broken[need])
        if isinstance(fate, GivenUp):
            made.give_up[work.place] = broken[work.place] = fate.reason
        elif all(need not in open_ or need in covered or need in made.submit for need in work.needs):
            made.submit[work.place] = fate.resource
    return made


def verdict(work: Work, ended: Sequence[Job], classes: Sequence[str]) -> Again | GivenUp:
    """What becomes of a task after all jobs that had it have ended without settling it."""
    resource = work.resource
    promoted = losses = kills = false_starts = passed_over = 0
    for job in ended:
        ending = job.ending
        if ending is None:
            raise ValueError(f"{job.unit} has not ended")
        used = classes.index(job.resource) if job.resource in classes else resource
        resource = max(resource, used)
        what = f"{ending.words} (job {job.id}, class {job.resource})"
        is_own = ending.place == work.place
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
                return GivenUp(f"{passed_over} jobs found that what it needs was not there, the last was {job.id}")
        elif not ending.has_begun:
            false_starts += 1
            if false_starts >= FALSE_STARTS:
                return GivenUp(f"{what} before it came to any task, as {false_starts - 1} jobs before it")
    return Again(resource)
