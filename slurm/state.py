"""What a driver sees: which tasks are settled on the disk, and what SLURM says of the jobs that have the others."""

import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from harness.errors import UserError
from harness.run.heartbeat import Beat
from harness.run.task import Task
from harness.store.store import Store
from slurm.entry import has_moved
from slurm.launch import Ending, Job, Launch, launches
from slurm.queue import TIMEOUT_S, JobState, State, UnreachableError, named, states

UNSEEN_S = 150.0
"""After so long SLURM shows a job that it has taken: `sbatch` tries for two minutes, also after whoever called it was killed."""
HELD = {"JobHeldUser", "JobHeldAdmin"}
"""Reasons of a job that waits because somebody wants it to wait."""


@dataclass(frozen=True)
class Seen:
    """A job and SLURM's word about it."""

    launch: Launch
    job: Job
    state: JobState

    @cached_property
    def beat(self) -> Beat | None:
        """What it says of itself; None before it begins."""
        return Beat.read(self.launch.progress(self.job.unit))


@dataclass
class Sight:
    """The tasks that are not settled and the jobs that have them, as of the last `look`.

    Attributes:
        tasks: those that are not settled, by place, needs before what needs them.
        settle_s: how long after the end of a job its results may not be seen yet.
        failed: reasons by place.
        silence: what was said instead of an answer when SLURM did not answer, or empty.
    """

    store: Store
    tasks: dict[str, Task]
    launches: Sequence[Launch]
    settle_s: float
    failed: dict[str, str] = field(default_factory=dict)
    silence: str = ""
    _active: dict[tuple[str, str], JobState] = field(default_factory=dict)
    _over: set[tuple[str, str]] = field(default_factory=set)
    _ended_at: dict[tuple[str, str], float] = field(default_factory=dict)

    def settled(self) -> Iterator[tuple[Task, str | None]]:
        """Tasks that have been settled since the last call, with the reason of a failure; they are then no longer in `tasks`.

        A task's folder appears with its end, so that one listing of each parent tells which of thousands to look into.
        """
        there: dict[Path, set[str]] = {}
        for place, task in list(self.tasks.items()):
            folder = task.folder(self.store)
            parent = folder.path.parent
            if parent not in there:
                there[parent] = {path.name for path in parent.glob("*")}
            if folder.path.name in there[parent] and folder.is_settled:
                del self.tasks[place]
                reason = None if folder.is_done else folder.failure or "failed without a reason"
                if reason is not None:
                    self.failed[place] = reason
                yield task, reason

    def look(self) -> None:
        """Ask SLURM about all jobs that may still settle something, and write down how others ended."""
        self.silence = ""
        for launch in self.launches:
            self._find_lost(launch)
            waiting = [job for job in self._unended(launch) if job.id]
            if waiting:
                self._ask(launch, waiting)

    def covered(self) -> set[str]:
        """Places of tasks that a job has which may still settle them, or may have done so unseen."""
        return {place for launch in self.launches for job in self._unended(launch) for place in job.covers}

    def alive(self) -> Iterator[Seen]:
        """Jobs that wait or run, or may do so while SLURM does not answer."""
        for launch in self.launches:
            for job in self._unended(launch):
                state = self._active.get((launch.name, job.unit), JobState(job.id, State.PENDING, launch.name))
                if state.is_live:
                    yield Seen(launch, job, state)

    def ended(self) -> Mapping[str, list[Job]]:
        """Jobs that ended and left tasks unsettled, by their places, in the order of submission."""
        found: dict[str, list[Job]] = {}
        for launch in self.launches:
            for job in launch.jobs:
                if job.ending is not None:
                    for place in job.covers:
                        found.setdefault(place, []).append(job)
        return found

    def unanswered(self, launch: Launch) -> list[Job]:
        """Units of which nobody knows yet whether SLURM has taken them."""
        return [job for job in launch.jobs if not job.id]

    def _unended(self, launch: Launch) -> Iterator[Job]:
        for job in launch.jobs:
            if job.ending is None and (launch.name, job.unit) not in self._over:
                yield job

    def _ask(self, launch: Launch, jobs: Sequence[Job]) -> None:
        told = states([job.id for job in jobs], launch.name)
        known = {job.partition("_")[0] for job, state in told.items() if state.state is not State.GONE}
        for job in jobs:
            key, state = (launch.name, job.unit), told[job.id]
            if state.state is State.UNREACHABLE:
                self.silence = state.reason or "no answer"
                self._active.setdefault(key, state)
                continue
            before = self._active.get(key, state)
            waited = before.state in {State.PENDING, State.CANCELLED}  # the latter as found out here at the last look
            if state.state is State.GONE and waited and job.id.partition("_")[0] in known:
                # SLURM forgets a waiting element of an array as soon as it is cancelled
                state = replace(state, state=State.CANCELLED, reason="while it waited")
            self._active[key] = state
            if state.never_starts and state.reason not in HELD and not cancel(job.id):
                launch.ended(job.unit, ending(self.store, launch, job, state))
            elif state.is_live:
                self._ended_at.pop(key, None)
            else:
                self._end(launch, job, state)

    def _end(self, launch: Launch, job: Job, state: JobState) -> None:
        """Write down how a job ended, once what it has left is certain."""
        key = (launch.name, job.unit)
        left = [place for place in job.covers if place in self.tasks]
        since = self._ended_at.setdefault(key, time.monotonic())
        if not left:
            self._over.add(key)
        elif time.monotonic() - since >= self.settle_s:
            launch.ended(job.unit, ending(self.store, launch, job, state))

    def _find_lost(self, launch: Launch) -> None:
        """Find out about jobs that an earlier driver asked for without living to hear the answer."""
        lost = self.unanswered(launch)
        if not lost:
            return
        try:
            known = named(launch.name)
        except UnreachableError as silence:
            self.silence = str(silence)
            return
        mine = {job.id.partition("_")[0] for job in launch.jobs if job.id}
        strange = {job.partition("_")[0] for job in known} - mine
        asked = datetime.fromisoformat(lost[0].asked)
        if strange:  # a driver hears of one array before it asks for the next
            array = min(strange, key=int)
            is_array = f"{array}_0" in known or len(lost) > 1
            launch.taken({job.unit: f"{array}_{n}" if is_array else array for n, job in enumerate(lost)})
        elif (datetime.now(UTC) - asked).total_seconds() > UNSEEN_S:
            launch.refused([job.unit for job in lost], "SLURM does not know it")


def ending(store: Store, launch: Launch, job: Job, state: JobState) -> Ending:
    """How a job ended, from SLURM's word and the job's own last one."""
    beat = Beat.read(launch.progress(job.unit))
    what, words = state.state, str(state)
    if state.never_starts:
        what = State.CANCELLED if re.search("Limit|Constraints|Never", state.reason) else State.NODE_FAIL
    return Ending(
        state=what,
        words=words,
        has_begun=beat is not None and (beat.done > 0 or bool(beat.place)),
        place=beat.place if beat else "",
        has_moved=beat is not None and has_moved(store, beat),
        signal=state.signal,
    )


def held(store: Store) -> dict[str, str]:
    """Names of launches by the places of tasks that jobs have which may still settle them.

    Where there is no SLURM to be asked, all jobs may that nobody has seen end.
    """
    found: dict[str, str] = {}
    for launch in launches(store):
        jobs = [job for job in launch.jobs if job.ending is None]
        try:
            told = states([job.id for job in jobs if job.id], launch.name) if jobs else {}
        except UserError:
            told = {}
        for job in jobs:
            if job.id not in told or told[job.id].is_live:
                found |= dict.fromkeys(job.covers, launch.name)
    return found


def cancel(*arguments: str) -> str:
    """Tell SLURM to cancel jobs, by their ids or `--name=`; when it did shows in the queue.

    Returns:
        What it complained of, or nothing.
    """
    try:
        done = subprocess.run(["scancel", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError:
        return "not found; this machine is not part of a SLURM cluster"
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT_S:.0f} s"
    words = done.stderr.strip().rpartition("\n")[2]
    return (words or f"ended with {done.returncode}") if done.returncode else ""
