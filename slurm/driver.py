"""The driver of a launch: looks, decides, submits, until every task is settled. Whatever it knows lies on the disk."""

import contextlib
import time
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from harness.errors import UserError
from harness.plan.plan import Plan
from harness.run.local import Summary
from harness.run.task import BuildArtifact, Task
from harness.run.work import Unit, reopen, to_do
from harness.store import provenance
from harness.store.store import Folder, Store
from slurm.arrays import arrays, works
from slurm.launch import Job, Launch, launches
from slurm.lease import Seat
from slurm.profile import SlurmProfile
from slurm.queue import State, UnreachableError
from slurm.retry import Decision, decide
from slurm.state import Sight, cancel
from slurm.status import board
from slurm.submit import BusyError, array_size, submit

LOG_LINES = 200
"""So much of what a job printed is kept in the log of a task that it left behind."""
BUSY_S = 300.0
"""A SLURM that takes no more jobs is asked again when one of this store has ended, or after so long: others may have ended."""


def drive(plan: Plan, profile: SlurmProfile, console: Console, *, detach: bool = False) -> Summary | None:
    """Have SLURM settle what a plan has to do, and wait for it.

    Jobs of earlier launches of this store that still wait or run are waited for, not submitted again.

    Args:
        plan: of a store that no other process of this machine drives.
        profile: where and with which resources.
        console: gets a line for each task that ends, and on a terminal a live table.
        detach: return once everything is submitted; the same command follows it later.

    Returns:
        What became of the cells; None if that is not known yet.

    Raises:
        UserError: when SLURM refuses the jobs, when the launch was cancelled or its folder removed, or when another machine
            drives this store.
    """
    tasks = to_do(plan)
    if not tasks:
        _close_settled(plan.store)
        return Summary.of(plan, tasks)
    with Seat(plan.store.root) as seat:
        driver = Driver(plan, profile, console, tasks)
        try:
            if not driver.follow(seat, detach):
                return None
        except KeyboardInterrupt:
            console.print(f"{driver.launch.name} goes on without this terminal. {_ways(plan)}", soft_wrap=True)
            raise
    return Summary.of(plan, tasks)


class Driver:
    """One launch, new or gone on with.

    Attributes:
        launch: gets what is submitted from now on.
        sight: what is known of it and of other launches of the store that are not over.
    """

    def __init__(self, plan: Plan, profile: SlurmProfile, console: Console, tasks: Sequence[Task]) -> None:
        self._plan, self._profile, self._console = plan, profile, console
        self._classes = [each.name for each in profile.resources]
        self._works, notes = works(plan, profile, tasks)
        for note in notes[:1]:
            more = f" (and {len(notes) - 1} more like it)" if len(notes) > 1 else ""
            console.print(f"[yellow]note[/yellow] {escape(note)}{more}", soft_wrap=True)
        found = launches(plan.store)
        self.launch = self._own(found)
        self.sight = Sight(
            plan.store,
            {task.place: task for task in tasks},
            [*(one for one in found if one.name != self.launch.name), self.launch],
            profile.settle_s,
        )
        self._total = len(tasks)
        self._said: dict[str, str] = {}
        self._busy_until, self._alive_when_busy = 0.0, 0

    def follow(self, seat: Seat, detach: bool) -> bool:
        """Look, decide and submit until all is settled, or with `detach` until all is submitted.

        Returns:
            Whether all is settled.
        """
        self._begin()
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                seat.check()
                self._check_open()
                self._collect()
                self.sight.look()
                self._collect()
                self._say_silence()
                if not self.sight.tasks:
                    break
                if not self.sight.silence:
                    self._act(self._decide())
                if detach and self._is_submitted():
                    self._check_open()
                    self._console.print(f"submitted as {self.launch.name}. {_ways(self._plan)}", soft_wrap=True)
                    return False
                if self._console.is_terminal:
                    live.update(board(self.sight, self._total), refresh=True)
                time.sleep(self._profile.poll_s)
        self._end()
        return True

    def _own(self, found: Sequence[Launch]) -> Launch:
        """The last launch of this suite with this profile that is not over, else a new one."""
        suite = self._plan.suite
        profile = self._profile.model_dump(mode="json")
        for launch in reversed(found):
            facts = launch.facts
            if (facts["suite"], facts["scale"], facts["profile"]) == (suite.name, suite.scale, profile):
                self._console.print(f"going on with {launch.name}")
                return launch
        facts = {"launch": suite.launch, "profile": profile, "command": provenance.command()}
        return Launch.create(self._plan.store, suite.name, suite.scale, facts)

    def _begin(self) -> None:
        """Forget what failed before, but not what a job that lives has just recorded, which would not come back to it."""
        while True:
            self.sight.look()
            self._say_silence()
            if not self.sight.silence:
                break
            time.sleep(self._profile.poll_s)
        held = {place for seen in self.sight.alive() for place in seen.job.covers}
        failed = [task for task in self.sight.tasks.values() if task.place not in held]
        failed = [task for task in failed if task.folder(self._plan.store).failure is not None]
        for launch in self.sight.launches:
            launch.again(task.place for task in failed)
        reopen(self._plan.store, failed)

    def _end(self) -> None:
        """Close the launches that have nothing to do any more; those go on whose jobs have cells that are not in this plan."""
        busy = set()
        for seen in self.sight.alive():
            if any(not Folder(self._plan.store.root / place).is_settled for place in seen.job.covers):
                busy.add(seen.launch.name)
            elif seen.state.state is State.PENDING:
                cancel(seen.job.id)
        for launch in self.sight.launches:
            if launch.name not in busy:
                launch.close("finished")

    def _check_open(self) -> None:
        """Stop where the launch was cancelled, with whatever was submitted at the same moment, or its folder removed."""
        name = self.launch.name
        if self.launch.is_over:
            cancel(f"--name={name}")
            raise UserError(f"{name} was cancelled; finished cells are kept", fix="the same command runs the rest")
        if not self.launch.is_there:
            raise UserError(
                f"{self.launch.path}: somebody has removed this folder; jobs that wait or run are not followed any more",
                fix=f"scancel --name={name}, then the same command",
            )

    def _collect(self) -> None:
        """Say what was settled since the last time."""
        for task, reason in self.sight.settled():
            number = f"{self._total - len(self.sight.tasks)}/{self._total}"
            if reason is None:
                self._console.print(f"[green]✓[/green] {number} {escape(task.title)}")
            else:
                self._console.print(f"[red]✗[/red] {number} {escape(f'{task.title}: {reason}')}", soft_wrap=True)

    def _decide(self) -> Decision:
        return decide(
            [self._works[place] for place in self.sight.tasks],
            self.sight.failed,
            self.sight.covered(),
            self.sight.ended(),
            self._classes,
        )

    def _act(self, decision: Decision) -> None:
        """Record what is given up; submit the rest, unless it is not known yet what an earlier driver has submitted."""
        self._check_open()
        if decision.give_up:
            self._give_up(decision.give_up)
        lost = len(self.sight.unanswered(self.launch))
        self._say("lost", f"SLURM did not say whether it has taken {lost} jobs; that shows soon" if lost else "")
        if lost or not decision.submit or self._is_busy():
            return
        try:
            largest = array_size(self._profile)
            for units, number in arrays(self._plan, self._profile, self.sight.tasks, decision.submit, largest):
                self._check_open()
                resource = self._profile.resources[number]
                jobs = submit(self.launch, units, resource, self._profile, self._builders(units))
                self._announce(units, jobs, resource.name)
            self._say("busy", "")
        except UnreachableError as silence:
            self._say("silence", f"SLURM does not answer ({silence}); waiting for it")
        except BusyError as busy:
            self._busy_until, self._alive_when_busy = time.monotonic() + BUSY_S, len(list(self.sight.alive()))
            if not self._alive_when_busy:
                raise UserError(
                    f"SLURM takes no job: {busy}", fix="a smaller class or max_array_size in the profile, or wait"
                ) from None
            self._say("busy", f"SLURM takes no more jobs now ({busy}); the rest follows")

    def _is_busy(self) -> bool:
        """Whether SLURM, which took no more jobs lately, would take none now."""
        return time.monotonic() < self._busy_until and len(list(self.sight.alive())) >= self._alive_when_busy

    def _give_up(self, reasons: Mapping[str, str]) -> None:
        """Record failures, each with the end of what the last job that had the task has printed."""
        last = {place: (launch, job) for launch in self.sight.launches for job in launch.jobs for place in job.covers}
        for place, reason in reasons.items():
            task, lines = self.sight.tasks[place], [reason]
            for file in last[place][0].logs(last[place][1]) if place in last else ():
                lines += ["", f"── {file}", *file.read_text(errors="replace").splitlines()[-LOG_LINES:]]
            if not task.folder(self._plan.store).is_settled:
                task.fail(self._plan.store, reason, "\n".join(lines) + "\n")

    def _is_submitted(self) -> bool:
        """Whether SLURM has all that can be submitted."""
        return not (self.sight.silence or self.sight.unanswered(self.launch) or self._decide().submit)

    def _builders(self, units: Sequence[Unit]) -> set[str]:
        """Ids of the arrays and jobs that build what units need."""
        needs = {need for unit in units for task in unit.tasks for need in self._works[task.place].needs}
        return {
            seen.job.id.partition("_")[0]
            for seen in self.sight.alive()
            if seen.job.id and not needs.isdisjoint(seen.job.covers)
        }

    def _announce(self, units: Sequence[Unit], jobs: Sequence[Job], resource: str) -> None:
        count = sum(len(unit.tasks) for unit in units)
        kind = "artifacts" if isinstance(units[0].tasks[0], BuildArtifact) else "cells"
        array = jobs[0].id.partition("_")[0]
        what = f"array {array} of {len(jobs)} jobs" if len(jobs) > 1 else f"job {array}"
        self._console.print(f"submitted {what}: {count} {kind}, class {resource}", highlight=False)

    def _say_silence(self) -> None:
        silence = self.sight.silence
        self._say("silence", f"SLURM does not answer ({silence}); jobs go on, waiting for it" if silence else "")

    def _say(self, topic: str, sentence: str) -> None:
        """What is being waited for, once; nothing when it is over."""
        if sentence and not self._said.get(topic):
            self._console.print(f"[yellow]{escape(sentence)}[/yellow]", soft_wrap=True)
        self._said[topic] = sentence


def _close_settled(store: Store) -> None:
    """Close the launches of which all tasks are settled: their last driver ended before they were."""
    found = [
        launch
        for launch in launches(store)
        if all(Folder(store.root / place).is_settled for job in launch.jobs for place in job.covers)
    ]
    if found:
        with contextlib.suppress(UserError), Seat(store.root):  # a driver on another machine closes its own
            for launch in found:
                launch.close("finished")


def _ways(plan: Plan) -> str:
    scale = f" --scale {plan.suite.scale}" if plan.suite.scale != "paper" else ""
    suite = f"{plan.suite.file}{scale} --store {plan.store.root}"
    return f"The same command follows it; `harness status {suite}` looks; `harness cancel {suite}` ends it."
