"""Progress display: lines about jobs, and the work left as a bar on a terminal or as occasional lines elsewhere."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from harness.api import Advance
from harness.plan.estimate import duration

if TYPE_CHECKING:
    from harness.plan.job import Job
    from harness.run.outcome import Outcome

FEW = 20
"""Maximum number of jobs elsewhere with a bar each; the sentence below counts the rest."""
MANY = 200
"""Without a terminal, with more jobs than this, only failures get a line each."""
EVERY_S = 20.0
"""Without a terminal, time between two progress lines."""
PRIOR_S = 20.0
"""Weight of the estimate relative to the pace so far, in seconds of work."""


class Bars(Protocol):
    """Shows or records the progress of a piece of work."""

    def bar(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """A bar with `total` steps; call the value with the number of steps done."""
        ...


class Watcher(Bars, Protocol):
    """Notified of events while a batch of jobs runs; its bars show progress inside a job."""

    def began(self, job: "Job") -> None:
        """A job has started."""
        ...

    def ended(self, job: "Job", outcome: "Outcome") -> None:
        """A job is settled. One with a failed dependency is settled without having started."""
        ...


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A job that runs on another machine, as known here.

    Attributes:
        description: its title, where it runs, and its present step.
        done, total: steps of that; None where it shows none.
    """

    description: str
    done: int = 0
    total: int | None = None


class Display:
    """The `Watcher` that prints for the user, the same for all launchers.

    Each job that ends is one line; artifacts and cells are counted apart. On a terminal there is one bar for everything, with
    the time left, and below it one for each running job and for each piece of work inside those of this process. Elsewhere (a
    pipe, a log file) a line says the same every `EVERY_S` seconds, and of more than `MANY` jobs only failures have a line of
    their own. `with Display(console) as display` shows the bars or writes these lines.

    Args:
        console: where all goes.
        title: of the bar for everything.
    """

    def __init__(self, console: Console, title: str = "") -> None:
        self.console = console
        self.work = Work()
        self._board = _Board(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _Steps(),
            _Time(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._title = title
        self._overall: TaskID | None = None
        self._shown: dict[str, TaskID] = {}
        self._pieces: list[TaskID] = []
        self._ticker = _Ticker(self._tick)
        self._last = ""

    def __enter__(self) -> Self:
        self._board.start()
        if not self.console.is_terminal:
            self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ticker.stop()
        self._board.stop()

    def expect(self, jobs: Iterable["Job"]) -> None:
        """Announce these jobs and add them to the work to be done."""
        self.work.add(jobs)
        if self.work.total:
            self._overall = self._board.add_task(self._title, total=self.work.expected_s, work=self.work)
            self.say(f"to do: {self.work.total}, about {duration(self.work.expected_s)} of work")

    def began(self, job: "Job") -> None:
        """As `Watcher.began`: show a bar for a job of this machine."""
        self._shown[job.place] = self._board.add_task(job.title, total=None)

    def ended(self, job: "Job", outcome: "Outcome") -> None:
        """As `Watcher.ended`: print a line."""
        if (shown := self._shown.pop(job.place, None)) is not None:
            self._board.remove_task(shown)
        count = self.work.ended(job, has_failed=outcome.reason is not None)
        if self._overall is not None:
            self._board.update(self._overall, completed=self.work.done_s, total=self.work.expected_s)
        if outcome.reason is not None:
            self._print(f"[red]✗[/red] {escape(f'{count} {job.title}: {outcome.reason}')}")
        elif self.console.is_terminal or self.work.total.jobs <= MANY:
            time = "" if outcome.seconds is None else f" [dim]{outcome.seconds:.1f} s[/dim]"
            self._print(f"[green]✓[/green] {escape(f'{count} {job.title}')}{time}")
        for remark in outcome.remarks:
            self.note(f"{job.title}: {remark}")

    @contextlib.contextmanager
    def bar(self, description: str, total: int) -> Iterator[Advance]:
        """As `Bars.bar`."""
        task = self._board.add_task(description, total=total)
        self._pieces.append(task)

        def advance(steps: int = 1) -> None:
            self._board.advance(task, steps)

        try:
            yield advance
        finally:
            self._pieces.remove(task)
            self._board.remove_task(task)

    def follow(self, running: Mapping[str, Elsewhere], sentence: str) -> None:
        """Show these jobs as running elsewhere, replacing those of the last call.

        Args:
            running: by place.
            sentence: how many run, wait and have ended.
        """
        first = dict(list(running.items())[:FEW])
        for place in self._shown.keys() - first.keys():
            self._board.remove_task(self._shown.pop(place))
        for place, job in first.items():
            if place not in self._shown:
                self._shown[place] = self._board.add_task(job.description, total=job.total)
            self._board.update(
                self._shown[place], description=job.description, completed=job.done, total=job.total, refresh=False
            )
        self._board.sentence = sentence
        self._board.refresh()

    def say(self, sentence: str) -> None:
        """Print a sentence as it is."""
        self._print(escape(sentence))

    def note(self, sentence: str) -> None:
        """Print a note that stops nothing."""
        self._print(f"[yellow]note[/yellow] {escape(sentence)}")

    def _tick(self) -> None:
        """Say how far everything is, unless a line has just said something."""
        tasks = {task.id: task for task in self._board.tasks}
        running = [tasks[task].description for task in list(self._shown.values()) if task in tasks]
        pieces = [_progress(tasks[task]) for task in list(self._pieces) if task in tasks]
        what = self._board.sentence or "; ".join([*running[:1], *pieces])
        more = f" and {len(running) - 1} more" if len(running) > 1 and not self._board.sentence else ""
        line = ": ".join(filter(None, [self.work.counts, f"{what}{more}"]))  # work outside of jobs has no counts
        if line and line != self._last:
            self._last = line
            self.say(f"{line}{self.work.left}")

    def _print(self, line: str) -> None:
        self._ticker.postpone()
        self.console.print(line, soft_wrap=True)


@dataclass(slots=True)
class Count:
    """Numbers of artifacts and of cells."""

    artifacts: int = 0
    cells: int = 0

    @property
    def jobs(self) -> int:
        """Both together."""
        return self.artifacts + self.cells

    def add(self, job: "Job") -> None:
        """Count a job."""
        if job.is_cell:
            self.cells += 1
        else:
            self.artifacts += 1

    def __bool__(self) -> bool:
        return self.jobs > 0

    def __str__(self) -> str:
        parts = ((self.artifacts, "artifact"), (self.cells, "cell"))
        return " and ".join(f"{count} {noun}{'s' * (count != 1)}" for count, noun in parts if count)


@dataclass(slots=True)
class Work:
    """How much work there is, how much is done, and how long the rest takes at the pace so far.

    Attributes:
        total, done: numbers of jobs.
        expected_s, done_s: estimated seconds of all jobs and of those that have ended. Jobs that fail are taken out of both,
            because they say nothing about the pace.
    """

    total: Count = field(default_factory=Count)
    done: Count = field(default_factory=Count)
    expected_s: float = 0.0
    done_s: float = 0.0
    _begin_s: float = field(default_factory=time.monotonic)
    _last_s: float = field(default_factory=time.monotonic)

    def add(self, jobs: Iterable["Job"]) -> None:
        """Expect these jobs from now on."""
        for job in jobs:
            self.total.add(job)
            self.expected_s += job.resources.seconds
        self._begin_s = self._last_s = time.monotonic()

    def ended(self, job: "Job", *, has_failed: bool) -> str:
        """Count a job that has ended; return its number among its kind, as `3/9`."""
        self.done.add(job)
        self._last_s = time.monotonic()
        if has_failed:
            self.expected_s -= job.resources.seconds
        else:
            self.done_s += job.resources.seconds
        done, total = (
            (self.done.cells, self.total.cells) if job.is_cell else (self.done.artifacts, self.total.artifacts)
        )
        return f"{done}/{total}"

    @property
    def counts(self) -> str:
        """`2/5 artifacts, 0/9 cells`."""
        parts = (
            (self.done.artifacts, self.total.artifacts, "artifacts"),
            (self.done.cells, self.total.cells, "cells"),
        )
        return ", ".join(f"{done}/{total} {noun}" for done, total, noun in parts if total)

    def left_s(self) -> float:
        """Time until everything is done: the estimate of the rest, corrected by the times of finished jobs.

        The correction is weak at first: `PRIOR_S` seconds as estimated count as if they had been seen.
        """
        pace = (self._last_s - self._begin_s + PRIOR_S) / (self.done_s + PRIOR_S)
        return max(0.0, (self.expected_s - self.done_s) * pace - (time.monotonic() - self._last_s))

    @property
    def left(self) -> str:
        """`, about 5 min left`; empty if the rest takes longer than expected, or nothing is expected."""
        left_s = self.left_s()
        return f", about {duration(left_s)} left" if left_s >= 1 else ""


class _Ticker(threading.Thread):
    """Calls a function every `EVERY_S` seconds in which it is not postponed."""

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__(daemon=True, name="progress lines")
        self._call = call
        self._ends = threading.Event()
        self._due_s = time.monotonic() + EVERY_S

    def postpone(self) -> None:
        """Wait from now on."""
        self._due_s = time.monotonic() + EVERY_S

    def run(self) -> None:
        while not self._ends.wait(max(0.0, self._due_s - time.monotonic())):
            if time.monotonic() >= self._due_s:
                self.postpone()
                self._call()

    def stop(self) -> None:
        """End it, if it was started."""
        self._ends.set()
        if self.is_alive():
            self.join()


class _Board(Progress):
    """Bars with a sentence below them."""

    sentence = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.sentence:
            yield Text(self.sentence)


class _Steps(MofNCompleteColumn):
    """`3/9`; nothing where the number of steps is unknown."""

    def render(self, task: Task) -> Text:
        if work := task.fields.get("work"):
            return Text(work.counts)
        return super().render(task) if task.total else Text()


class _Time(TimeElapsedColumn):
    """Time left of everything; of each piece of it, the time so far."""

    def render(self, task: Task) -> Text:
        if work := task.fields.get("work"):
            return Text(work.left.removeprefix(", "))
        return super().render(task)


def _progress(task: Task) -> str:
    """`training tiny/llama 20/480`."""
    return f"{task.description} {int(task.completed)}/{int(task.total)}" if task.total else task.description
