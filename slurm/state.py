"""The state of a store's launches: the jobs that are settled on disk, and SLURM's view of the jobs that run the others."""

import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from harness.api import JobStatus, LaunchState
from harness.errors import UserError
from harness.plan.job import Job
from harness.run.heartbeat import Beat
from harness.store.store import Store
from slurm.entry import has_moved
from slurm.launch import Ending, Launch, Submission, launches
from slurm.queue import TIMEOUT_S, JobState, State, UnreachableError, named, states

UNSEEN_S = 150.0
"""After this long SLURM shows a job that it has taken: `sbatch` tries for two minutes, even after its caller was killed."""
HELD = {"JobHeldUser", "JobHeldAdmin"}
"""Reasons of a job that waits because somebody wants it to wait."""


@dataclass(frozen=True)
class Observed:
    """A submission and what SLURM says about its job."""

    launch: Launch
    submission: Submission
    job: JobState

    @cached_property
    def beat(self) -> Beat | None:
        """See `beat_of`."""
        return beat_of(self.launch, self.submission, self.job)

    def status(self, place: str, title: str) -> JobStatus:
        """Status of one of its unsettled jobs.

        Args:
            place: of the job.
            title: to be shown for it.
        """
        submission, job, name = self.submission, self.job, self.launch.name
        if not job.is_live:
            words = submission.ending.words if submission.ending else str(job)
            note = f"its SLURM job ended ({words}); the next `harness run` decides what to do"
            return JobStatus(place, title, "to do", job=submission.id, launch=name, note=note)
        beat = self.beat
        if beat is not None and beat.place == place:
            progress = f"{beat.step} {beat.steps_done}/{beat.steps_total}" if beat.step else ""
            node, age_s = job.node or beat.host, _age_s(beat.since)
            return JobStatus(place, title, "running", age_s, node, submission.id, name, progress)
        note = job.reason if job.state is State.PENDING else "its batch is running another job"
        return JobStatus(place, title, "pending", _age_s(submission.asked), job.node, submission.id, name, note=note)


@dataclass
class ClusterState:
    """The unsettled jobs and the SLURM jobs that run them, as of the last `look`.

    Attributes:
        jobs: those that are not settled, by place, needs before what needs them.
        settle_s: how long after the end of a SLURM job its results may not be visible yet.
        failed: reasons by place.
        silence: what was said in place of an answer when SLURM did not answer, or empty.
    """

    store: Store
    jobs: dict[str, Job]
    launches: Sequence[Launch]
    settle_s: float
    failed: dict[str, str] = field(default_factory=dict)
    silence: str = ""
    _active: dict[tuple[str, str], JobState] = field(default_factory=dict)
    _over: set[tuple[str, str]] = field(default_factory=set)
    _ended_at: dict[tuple[str, str], float] = field(default_factory=dict)

    def settled(self) -> Iterator[tuple[Job, str | None]]:
        """Jobs that have been settled since the last call, with the reason of a failure; they leave `jobs`.

        A job's folder appears when it ends, so one listing of each parent tells which of thousands to look into.
        """
        existing: dict[Path, set[str]] = {}
        for place, job in list(self.jobs.items()):
            folder = self.store.folder(place)
            parent = folder.path.parent
            if parent not in existing:
                existing[parent] = {path.name for path in parent.glob("*")}
            if folder.path.name in existing[parent] and folder.is_settled:
                del self.jobs[place]
                reason = None if folder.is_done else folder.failure or "failed without a reason"
                if reason is not None:
                    self.failed[place] = reason
                yield job, reason

    def look(self) -> None:
        """Ask SLURM about all jobs that may still settle something, and record how others ended."""
        self.silence = ""
        for launch in self.launches:
            self._find_lost(launch)
            waiting = [each for each in self._unended(launch) if each.id]
            if waiting:
                self._ask(launch, waiting)

    def covered(self) -> set[str]:
        """Places of jobs that a SLURM job may still settle, or may have settled unseen."""
        return {place for launch in self.launches for each in self._unended(launch) for place in each.covers}

    def alive(self) -> Iterator[Observed]:
        """Submissions whose SLURM jobs are pending or running, or may be while SLURM does not answer."""
        for launch in self.launches:
            for each in self._unended(launch):
                state = self._active.get((launch.name, each.batch), JobState(each.id, State.PENDING, launch.name))
                if state.is_live:
                    yield Observed(launch, each, state)

    def ended(self) -> Mapping[str, list[Submission]]:
        """Submissions whose SLURM jobs ended and left jobs unsettled, by the places of these, in the order of submission."""
        found: dict[str, list[Submission]] = {}
        for launch in self.launches:
            for each in launch.submissions:
                if each.ending is not None:
                    for place in each.covers:
                        found.setdefault(place, []).append(each)
        return found

    def unanswered(self, launch: Launch) -> list[Submission]:
        """Submissions that SLURM may or may not have accepted."""
        return [each for each in launch.submissions if not each.id]

    def _unended(self, launch: Launch) -> Iterator[Submission]:
        for each in launch.submissions:
            if each.ending is None and (launch.name, each.batch) not in self._over:
                yield each

    def _ask(self, launch: Launch, submissions: Sequence[Submission]) -> None:
        told = states([each.id for each in submissions], launch.name)
        known = {job.partition("_")[0] for job, state in told.items() if state.state is not State.GONE}
        for each in submissions:
            key, state = (launch.name, each.batch), told[each.id]
            if state.state is State.UNREACHABLE:
                self.silence = state.reason or "no answer"
                self._active.setdefault(key, state)
                continue
            before = self._active.get(key, state)
            waited = before.state in {State.PENDING, State.CANCELLED}  # the latter as found out here at the last look
            if state.state is State.GONE and waited and each.id.partition("_")[0] in known:
                # SLURM forgets a waiting element of an array as soon as it is cancelled
                state = replace(state, state=State.CANCELLED, reason="while it waited")
            self._active[key] = state
            if state.never_starts and state.reason not in HELD and not cancel(each.id):
                launch.ended(each.batch, ending(self.store, launch, each, state))
            elif state.is_live:
                self._ended_at.pop(key, None)
            else:
                self._end(launch, each, state)

    def _end(self, launch: Launch, submission: Submission, state: JobState) -> None:
        """Record how a SLURM job ended, once it is certain what it has left unsettled."""
        key = (launch.name, submission.batch)
        left = [place for place in submission.covers if place in self.jobs]
        since = self._ended_at.setdefault(key, time.monotonic())
        if not left:
            self._over.add(key)
        elif time.monotonic() - since >= self.settle_s:
            launch.ended(submission.batch, ending(self.store, launch, submission, state))

    def _find_lost(self, launch: Launch) -> None:
        """Find out about SLURM jobs that an earlier driver asked for without living to hear the answer."""
        lost = self.unanswered(launch)
        if not lost:
            return
        try:
            known = named(launch.name)
        except UnreachableError as silence:
            self.silence = str(silence)
            return
        mine = {each.id.partition("_")[0] for each in launch.submissions if each.id}
        strange = {job.partition("_")[0] for job in known} - mine
        asked = datetime.fromisoformat(lost[0].asked)
        if strange:  # a driver hears of one array before it asks for the next
            array = min(strange, key=int)
            is_array = f"{array}_0" in known or len(lost) > 1
            launch.taken({each.batch: f"{array}_{n}" if is_array else array for n, each in enumerate(lost)})
        elif (datetime.now(UTC) - asked).total_seconds() > UNSEEN_S:
            launch.refused([each.batch for each in lost], "SLURM does not know it")


def beat_of(launch: Launch, submission: Submission, state: JobState) -> Beat | None:
    """The last heartbeat of a SLURM job since its last start.

    None before its process begins to work, also after the job was put back into the queue: the file still has the last beat of the
    process before.
    """
    beat = Beat.read(launch.progress(submission.batch))
    if beat is None or state.state is State.PENDING:
        return None
    is_earlier = state.start is not None and datetime.fromisoformat(beat.updated) < state.start
    return None if is_earlier else beat


def ending(store: Store, launch: Launch, submission: Submission, state: JobState) -> Ending:
    """How a SLURM job ended, from what SLURM says and from its own last heartbeat."""
    beat = beat_of(launch, submission, state)
    if beat is not None and beat.out_of_memory:  # SLURM only sees a process that ended with an exception
        state = replace(state, state=State.OUT_OF_MEMORY, reason=beat.out_of_memory, exit_code=None, signal=None)
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


def launch_state(store: Store) -> LaunchState:
    """State of the unfinished launches of a store.

    Where there is no SLURM to be asked, all SLURM jobs whose end nobody has seen may still be running.
    """
    found: dict[str, JobStatus] = {}
    unfinished, silence = launches(store), ""
    for launch in unfinished:
        ids = [each.id for each in launch.submissions if each.id and each.ending is None]
        try:
            told = states(ids, launch.name) if ids else {}
        except UserError as error:
            told = {job: JobState(job, State.UNREACHABLE, launch.name, reason=error.message) for job in ids}
        for each in launch.submissions:
            unknown = JobState(each.id, each.ending.state if each.ending else State.PENDING, launch.name)
            state = told.get(each.id, unknown)
            if state.state is State.UNREACHABLE:
                silence = f"SLURM does not answer: {state.reason or 'no answer'}"
            observed = Observed(launch, each, state)
            found |= {place: observed.status(place, place) for place in each.covers}
    return LaunchState(tuple(launch.name for launch in unfinished), found, silence)


def cancel(*arguments: str) -> str:
    """Tell SLURM to cancel jobs, by their ids or `--name=`; the queue shows when it has done so.

    Returns:
        What it complained of, or nothing.
    """
    try:
        done = subprocess.run(
            ["scancel", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False, encoding="utf-8"
        )
    except FileNotFoundError:
        return "not found; this machine is not part of a SLURM cluster"
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT_S:.0f} s"
    words = done.stderr.strip().rpartition("\n")[2]
    return (words or f"ended with {done.returncode}") if done.returncode else ""


def _age_s(moment: str) -> float:
    return max(0.0, time.time() - datetime.fromisoformat(moment).timestamp())
