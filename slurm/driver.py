"""The driver of a launch: looks, decides, submits, until every task is settled. Whatever it knows lies on the disk."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.console import Console
from rich.live import Live

from harness import provenance
from harness.errors import UserError
from harness.local import Summary
from harness.plan import Plan
from harness.store import Folder
from harness.task import BuildArtifact, RunCell, Task
from harness.work import Unit, reopen, to_do, waves
from slurm import resources
from slurm.decision import Decision, Work, decide
from slurm.launch import Job, Launch, launches
from slurm.profile import SlurmProfile
from slurm.queue import State, UnreachableError
from slurm.seat import Seat
from slurm.sight import Sight, cancel
from slurm.status import board
from slurm.submit import BusyError, array_size, submit

LOG_LINES = 200
"""So much of what a job printed is kept in the log of a task that it left behind."""


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
        UserError: when SLURM refuses the jobs, when the launch was cancelled, or when another machine drives this store.
    """
    tasks = to_do(plan)
    kept = tuple(
        cell.folder for cell in plan.runnable if not any(task.place == f"cells/{cell.folder}" for task in tasks)
    )
    if not tasks:
        return Summary((), (), kept)
    with Seat(plan.store.root) as seat:
        driver = Driver(plan, profile, console, tasks)
        try:
            if not driver.follow(seat, detach):
                return None
        except KeyboardInterrupt:
            console.print(f"{driver.launch.name} goes on without this terminal. {_ways(plan)}", soft_wrap=True)
            raise
    cells = [(task.cell.folder, task.folder(plan.store)) for task in tasks if isinstance(task, RunCell)]
    return Summary(
        finished=tuple(name for name, folder in cells if folder.is_done),
        failed=tuple((name, folder.failure) for name, folder in cells if folder.failure is not None),
        kept=kept,
    )


class Driver:
    """One launch, new or gone on with.

    Attributes:
        launch: gets what is submitted from now on.
        sight: what is known of it and of other launches of the store that are not over.
    """

    def __init__(self, plan: Plan, profile: SlurmProfile, console: Console, tasks: Sequence[Task]) -> None:
        self._plan, self._profile, self._console = plan, profile, console
        self._classes = [each.name for each in profile.resources]
        self._works = {task.place: self._work(task) for task in tasks}
        found = launches(plan.store)
        self.launch = self._own(found)
        self.sight = Sight(
            plan.store,
            {task.place: task for task in tasks},
            [*(one for one in found if one.name != self.launch.name), self.launch],
            profile.settle_s,
        )
        self._total = len(tasks)
        self._notes: set[str] = set()
        self._said = ""
        self._busy = ""

    def follow(self, seat: Seat, detach: bool) -> bool:
        """Look, decide and submit until all is settled, or with `detach` until all is submitted.

        Returns:
            Whether all is settled.
        """
        self._begin()
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                seat.check()
                self._check_cancelled()
                self._collect()
                self.sight.look()
                self._collect()
                self._say(
                    self.sight.silence and f"SLURM does not answer ({self.sight.silence}); jobs go on, waiting for it"
                )
                if not self.sight.tasks:
                    break
                if not self.sight.silence:
                    self._act(self._decide())
                if detach and not self.sight.silence and not self._busy:
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
            self._say(self.sight.silence and f"SLURM does not answer ({self.sight.silence}); waiting for it")
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

    def _check_cancelled(self) -> None:
        if self.launch.is_over:
            raise UserError(
                f"{self.launch.name} was cancelled; finished cells are kept", fix="the same command runs the rest"
            )

    def _collect(self) -> None:
        """Say what was settled since the last time."""
        for task, reason in self.sight.settled():
            number = f"{self._total - len(self.sight.tasks)}/{self._total}"
            if reason is None:
                self._console.print(f"[green]✓[/green] {number} {task.title}")
            else:
                self._console.print(f"[red]✗[/red] {number} {task.title}: {reason}", soft_wrap=True)

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
        if self.launch.is_over:
            return
        for place, reason in decision.give_up.items():
            task = self.sight.tasks[place]
            if not task.folder(self._plan.store).is_settled:
                task.fail(self._plan.store, reason, self._log(place, reason))
        if not decision.submit or self.sight.unanswered(self.launch):
            return
        self._busy = ""
        try:
            largest = array_size(self._profile)
            for units, resource in self._arrays(decision.submit, largest):
                after = self._builders(units)
                jobs = submit(self.launch, units, self._profile.resources[resource], self._profile, after)
                self._announce(units, jobs, resource)
        except UnreachableError as silence:
            self._say(f"SLURM does not answer ({silence}); trying again")
        except BusyError as busy:
            if next(self.sight.alive(), None) is None:
                raise UserError(
                    f"SLURM takes no job: {busy}", fix="smaller resources in the profile, or wait"
                ) from None
            self._busy = str(busy)
            self._say(f"SLURM takes no more jobs now ({busy}); the rest follows")

    def _arrays(self, submitted: dict[str, int], largest: int) -> Iterator[tuple[list[Unit], int]]:
        """Units that are one array, with the number of their resource class; those that others need come first."""

        def fits(tasks: Sequence[Task]) -> bool:
            wanted = {submitted[task.place] for task in tasks}
            return len(wanted) == 1 and resources.fits(tasks, self._plan.device, self._profile.resources[wanted.pop()])

        tasks = [self.sight.tasks[place] for place in submitted]
        for wave in waves(self._plan, tasks, self._profile.packing, fits):
            for resource in sorted({submitted[unit.tasks[0].place] for unit in wave}):
                same = [
                    replace(
                        unit,
                        store=self._plan.store.root.resolve(),
                        device=self._plan.device,
                        patience_s=float(self._profile.settle_s),
                    )
                    for unit in wave
                    if submitted[unit.tasks[0].place] == resource
                ]
                for start in range(0, len(same), largest):
                    yield same[start : start + largest], resource

    def _builders(self, units: Sequence[Unit]) -> set[str]:
        """Ids of the arrays and jobs that build what units need."""
        needs = {need for unit in units for task in unit.tasks for need in self._works[task.place].needs}
        return {
            seen.job.id.partition("_")[0]
            for seen in self.sight.alive()
            if seen.job.id and not needs.isdisjoint(seen.job.covers)
        }

    def _work(self, task: Task) -> Work:
        unit = Unit(task.place, self._plan.store.root, (task,), self._plan.device, None)
        chosen, note = resources.choose(unit, self._profile)
        needs = tuple(f"artifacts/{need.name}/{need.key}" for need in task.needs)
        if note:
            self._console.print(f"[yellow]note[/yellow] {note}", soft_wrap=True)
        return Work(task.place, needs, self._classes.index(chosen.name))

    def _log(self, place: str, reason: str) -> str:
        """The reason, and the end of what the last job that had the task has printed."""
        jobs = [(launch, job) for launch in self.sight.launches for job in launch.jobs if place in job.covers]
        lines = [reason]
        for launch, job in jobs[-1:]:
            for file in launch.logs(job):
                lines += ["", f"── {file}", *file.read_text(errors="replace").splitlines()[-LOG_LINES:]]
        return "\n".join(lines) + "\n"

    def _announce(self, units: Sequence[Unit], jobs: Sequence[Job], resource: int) -> None:
        count = sum(len(unit.tasks) for unit in units)
        kind = "artifacts" if isinstance(units[0].tasks[0], BuildArtifact) else "cells"
        array = jobs[0].id.partition("_")[0]
        what = f"array {array} of {len(jobs)} jobs" if len(jobs) > 1 else f"job {array}"
        self._console.print(f"submitted {what}: {count} {kind}, class {self._classes[resource]}", highlight=False)

    def _say(self, sentence: str) -> None:
        """A sentence about what is being waited for, once."""
        if sentence and sentence != self._said:
            self._console.print(f"[yellow]{sentence}[/yellow]", soft_wrap=True)
        self._said = sentence


def _ways(plan: Plan) -> str:
    file = plan.suite.file
    scale = f" --scale {plan.suite.scale}" if plan.suite.scale != "paper" else ""
    return f"The same command follows it; `harness status {file}{scale}` looks; `harness cancel {file}{scale}` ends it."
