"""The driver of a launch: reads the state, decides and submits until every job is settled. Its whole state is on disk."""

import contextlib
import json
import math
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from harness.api import Summary
from harness.commands import this_command
from harness.errors import UserError
from harness.files import explained, write_json
from harness.plan.job import Job, jobs
from harness.plan.plan import Plan
from harness.run.jobs import Batch, reopen, summarize
from harness.run.outcome import Outcome, record_failure
from harness.run.progress import Display, Elsewhere
from harness.store.store import Store
from slurm.launch import Launch, Submission, filters, launches
from slurm.profile import SlurmProfile
from slurm.queue import State, UnreachableError
from slurm.retry import Decision, decide
from slurm.state import ClusterState, Observed, cancel
from slurm.submit import BusyError, array_size, arrays, submit, too_large

LOG_LINES = 200
"""How much of what a SLURM job printed is kept in the log of a job that it left behind."""
BUSY_S = 300.0
"""A SLURM that takes no more jobs is asked again when one of this store has ended, or after this time: others may have ended."""
RENEWED_S = 20.0
"""A driver renews its lease this often, whatever else it does."""
STALE_S = 90.0
"""A driver that has not renewed its lease for this long is taken for dead."""


def drive(plan: Plan, profile: SlurmProfile, display: Display, *, detach: bool = False) -> Summary | None:
    """Run the jobs of a plan on SLURM and wait for them.

    SLURM jobs of earlier launches of this store that still wait or run are waited for, not submitted again.

    Args:
        plan: of a store that no other process of this machine drives.
        profile: where and with which resources.
        display: gets every event.
        detach: return once everything is submitted; the same command follows it later.

    Returns:
        What became of the cells; None if that is not known yet.

    Raises:
        UserError: if SLURM refuses the jobs, if the launch was cancelled or its folder removed, or if a driver on another
            machine has this store.
    """
    todo = jobs(plan)
    if not todo:
        _close_settled(plan.store)
        return summarize(plan, todo)
    display.expect(todo)
    with Lease(plan.store.root) as lease:
        driver = Driver(plan, profile, display, todo)
        try:
            if not driver.follow(lease, detach):
                return None
        except KeyboardInterrupt:
            display.say(f"{driver.launch.name} continues without this terminal. {_ways(plan)}")
            raise
    return summarize(plan, todo)


class Driver:
    """Drives one launch, a new one or one left by an earlier driver.

    Attributes:
        launch: gets what is submitted from now on.
        state: what is known about it and about other unfinished launches of the store.
    """

    def __init__(self, plan: Plan, profile: SlurmProfile, display: Display, todo: Sequence[Job]) -> None:
        self._plan, self._profile, self._display = plan, profile, display
        self._classes = profile.resources
        notes = too_large(todo, profile)
        if notes:
            display.note(notes[0] + (f" (and {len(notes) - 1} more like it)" if len(notes) > 1 else ""))
        found = launches(plan.store)
        self.launch = self._own(found)
        self.state = ClusterState(
            plan.store,
            {job.place: job for job in todo},
            [*(one for one in found if one.name != self.launch.name), self.launch],
            profile.settle_s,
        )
        self._total = len(todo)
        self._said: dict[str, str] = {}
        self._busy_until, self._alive_when_busy = 0.0, 0

    def follow(self, lease: "Lease", detach: bool) -> bool:
        """Read the state, decide and submit until everything is settled or, with `detach`, submitted.

        Returns:
            Whether all is settled.
        """
        self._begin()
        while True:
            lease.check()
            self._check_open()
            self._collect()
            self.state.look()
            self._collect()
            self._say_silence()
            if not self.state.jobs:
                break
            if not self.state.silence:
                self._act(self._decide())
            if detach and self._is_submitted():
                self._check_open()
                self._display.say(f"submitted as {self.launch.name}. {_ways(self._plan)}")
                return False
            self._show()
            time.sleep(self._profile.poll_s)
        self._end()
        return True

    def _own(self, found: Sequence[Launch]) -> Launch:
        """The last unfinished launch of this suite with these options and this profile, else a new one."""
        suite = self._plan.suite
        profile = self._profile.record()
        for launch in reversed(found):
            facts = launch.facts
            if launch.belongs_to(suite) and (facts["only"], facts["profile"]) == (filters(suite), profile):
                self._display.say(f"continuing with {launch.name}")
                return launch
        facts = {"launch": suite.launch, "profile": profile, "command": this_command()}
        return Launch.create(
            self._plan.store, suite.name, suite.scale, facts, variant=suite.variant, only=filters(suite)
        )

    def _begin(self) -> None:
        """Forget earlier failures, except those that a live SLURM job has just recorded: it would not come back to them."""
        while True:
            self.state.look()
            self._say_silence()
            if not self.state.silence:
                break
            time.sleep(self._profile.poll_s)
        held = {place for observed in self.state.alive() for place in observed.submission.covers}
        store = self._plan.store
        failed = [job for place, job in self.state.jobs.items() if place not in held]
        failed = [job for job in failed if store.folder(job.place).failure is not None]
        for launch in self.state.launches:
            launch.again(job.place for job in failed)
        reopen(store, failed)

    def _end(self) -> None:
        """Close the launches that have nothing more to do, but not those whose SLURM jobs have cells that are not in this plan."""
        busy = set()
        for observed in self.state.alive():
            if any(not self._plan.store.folder(place).is_settled for place in observed.submission.covers):
                busy.add(observed.launch.name)
            elif observed.job.state is State.PENDING:
                cancel(observed.submission.id)
        for launch in self.state.launches:
            if launch.name not in busy:
                launch.close("finished")

    def _check_open(self) -> None:
        """Stop if the launch was cancelled, with whatever was submitted at the same moment, or if its folder was removed."""
        name = self.launch.name
        if self.launch.is_over:
            cancel(f"--name={name}")
            raise UserError(f"{name} was cancelled; finished cells are kept", fix="the same command runs the rest")
        if not self.launch.is_there:
            raise UserError(
                f"{self.launch.path}: somebody has removed this folder; its SLURM jobs are no longer followed",
                fix=f"scancel --name={name}, then the same command",
            )

    def _collect(self) -> None:
        """Report what was settled since the last time."""
        for job, reason in self.state.settled():
            self._display.ended(job, Outcome(None, reason))

    def _decide(self) -> Decision:
        state = self.state
        return decide(list(state.jobs.values()), state.failed, state.covered(), state.ended(), self._classes)

    def _act(self, decision: Decision) -> None:
        """Record what is given up; submit the rest, unless it is not known yet what an earlier driver has submitted."""
        self._check_open()
        if decision.give_up:
            self._give_up(decision.give_up)
        lost = len(self.state.unanswered(self.launch))
        self._say(
            "lost", f"SLURM did not say whether it has taken {lost} jobs; this will become clear soon" if lost else ""
        )
        if lost or not decision.submit or self._is_busy():
            return
        try:
            largest = array_size(self._profile)
            for batches, number in arrays(self._plan, self._profile, self.state.jobs, decision.submit, largest):
                self._check_open()
                resources = self._classes[number]
                submitted = submit(self.launch, batches, resources, self._profile, self._builders(batches))
                self._announce(batches, submitted, resources.name)
            self._say("busy", "")
        except UnreachableError as silence:
            self._say("silence", f"SLURM does not answer ({silence}); waiting for it")
        except BusyError as busy:
            self._busy_until, self._alive_when_busy = time.monotonic() + BUSY_S, len(list(self.state.alive()))
            if not self._alive_when_busy:
                raise UserError(
                    f"SLURM takes no job: {busy}", fix="a smaller class or max_array_size in the profile, or wait"
                ) from None
            self._say("busy", f"SLURM takes no more jobs now ({busy}); the rest follows")

    def _is_busy(self) -> bool:
        """Whether SLURM, which recently took no more jobs, would take none now."""
        return time.monotonic() < self._busy_until and len(list(self.state.alive())) >= self._alive_when_busy

    def _give_up(self, reasons: Mapping[str, str]) -> None:
        """Record failures, each with the end of what the last SLURM job that had the job has printed."""
        last = {
            place: (launch, one) for launch in self.state.launches for one in launch.submissions for place in one.covers
        }
        for place, reason in reasons.items():
            job, lines = self.state.jobs[place], [reason]
            for file in last[place][0].logs(last[place][1]) if place in last else ():
                if file.is_file():
                    lines += [
                        "",
                        f"── {file}",
                        *file.read_text(errors="replace", encoding="utf-8").splitlines()[-LOG_LINES:],
                    ]
            if not self._plan.store.folder(place).is_settled:
                record_failure(self._plan.store, job, reason, "\n".join(lines) + "\n")

    def _is_submitted(self) -> bool:
        """Whether SLURM has all that can be submitted."""
        return not (self.state.silence or self.state.unanswered(self.launch) or self._decide().submit)

    def _builders(self, batches: Sequence[Batch]) -> set[str]:
        """Ids of the arrays and jobs that build what batches need."""
        needs = {need for batch in batches for job in batch.jobs for need in job.needs}
        return {
            observed.submission.id.partition("_")[0]
            for observed in self.state.alive()
            if observed.submission.id and not needs.isdisjoint(observed.submission.covers)
        }

    def _announce(self, batches: Sequence[Batch], submitted: Sequence[Submission], resources: str) -> None:
        count = sum(len(batch.jobs) for batch in batches)
        kind = "cells" if batches[0].jobs[0].is_cell else "artifacts"
        array = submitted[0].id.partition("_")[0]
        what = f"array {array} of {len(submitted)} jobs" if len(submitted) > 1 else f"job {array}"
        self._display.say(f"submitted {what}: {count} {kind}, class {resources}")

    def _show(self) -> None:
        """On a terminal, bars of what runs and a count of the rest."""
        if not self._display.console.is_terminal:
            return
        running: dict[str, Elsewhere] = {}
        waiting = 0
        for observed in self.state.alive():
            for place in observed.submission.covers:
                if place in self.state.jobs:
                    shown = _elsewhere(observed, self.state.jobs[place])
                    running |= {place: shown} if shown else {}
                    waiting += shown is None
        settled = self._total - len(self.state.jobs)
        self._display.follow(
            running,
            f"{len(running)} running, {waiting} pending, {settled} of {self._total} settled, {len(self.state.failed)} failed",
        )

    def _say_silence(self) -> None:
        silence = self.state.silence
        self._say("silence", f"SLURM does not answer ({silence}); jobs continue, waiting for it" if silence else "")

    def _say(self, topic: str, sentence: str) -> None:
        """Say once what is being waited for; nothing when it is over."""
        if sentence and not self._said.get(topic):
            self._display.note(sentence)
        self._said[topic] = sentence


@dataclass(frozen=True, slots=True)
class Holder:
    """The driver that holds a lease."""

    host: str
    pid: int


class Lease:
    """The right to submit jobs for a store; `with Lease(root) as lease`, then `lease.check()` regularly.

    One driver per store, on whichever machine: a file that it renews, because the store's lock cannot be seen from other
    machines. It is meant for a process that holds the store's lock, so any other driver of this machine is dead. Ages are
    measured by the clock of the file system, which is the same for all machines.
    """

    def __init__(self, root: Path) -> None:
        self._file = root.resolve() / "launches" / "driver.json"
        self._me = Holder(socket.gethostname(), os.getpid())
        self._left = threading.Event()

    def __enter__(self) -> Self:
        """Take it.

        Raises:
            UserError: if a live driver on another machine has it.
        """
        holder = self._holder()
        if holder is not None and holder.host != self._me.host and (age_s := self._age_s()) < STALE_S:
            raise UserError(
                f"{self._file.parent}: process {holder.pid} on {holder.host} drives the launches of this store, "
                f"seen {age_s:.0f} s ago",
                fix=f"follow it with `harness status SUITE`, or end it and try again after {STALE_S:.0f} s",
            )
        write_json(self._file, asdict(self._me))
        threading.Thread(target=self._renew, name="lease", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        if self._holder() == self._me:
            self._file.unlink(missing_ok=True)

    def check(self) -> None:
        """Check that this driver still holds the lease.

        Raises:
            UserError: if another driver has taken it, because this one slept for too long.
        """
        holder = self._holder()
        if holder != self._me:
            who = f"process {holder.pid} on {holder.host}" if holder else "somebody"
            raise UserError(
                f"{self._file}: {who} has taken over; this driver stops, jobs continue", fix="harness status SUITE"
            )

    def _renew(self) -> None:
        while not self._left.wait(RENEWED_S):
            with contextlib.suppress(OSError):  # a file system that is away for a moment; `check` sees a lasting loss
                if self._holder() == self._me:
                    self._file.touch()

    def _holder(self) -> Holder | None:
        try:
            return Holder(**json.loads(self._file.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _age_s(self) -> float:
        """Time since it was renewed, between two marks of one clock; infinite if its driver has just left it."""
        probe = self._file.with_name(f".{self._me.host}.{self._me.pid}.{time.monotonic_ns()}")
        with explained(probe):
            probe.touch()
            now = probe.stat().st_mtime
            probe.unlink()
        try:
            return now - self._file.stat().st_mtime
        except FileNotFoundError:
            return math.inf


def _elsewhere(observed: Observed, job: Job) -> Elsewhere | None:
    """What is shown for a job if it is the one that its SLURM job is running."""
    status = observed.status(job.place, job.title)
    if status.state != "running" or (beat := observed.beat) is None:
        return None
    words = " · ".join(word for word in (job.title, status.node, f"job {status.job}", beat.step) if word)
    return Elsewhere(words, beat.steps_done, beat.steps_total if beat.step else None)


def _close_settled(store: Store) -> None:
    """Close the launches of which all jobs are settled: their last driver ended before they were."""
    found = [
        launch
        for launch in launches(store)
        if all(store.folder(place).is_settled for one in launch.submissions for place in one.covers)
    ]
    if found:
        with contextlib.suppress(UserError), Lease(store.root):  # a driver on another machine closes its own
            for launch in found:
                launch.close("finished")


def _ways(plan: Plan) -> str:
    return (
        f"Run the same command to follow it; `{plan.command('status')}` shows its status, "
        f"`{plan.command('cancel')}` cancels it."
    )
