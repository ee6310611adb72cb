"""What a person sees while jobs run: a line for each that has ended and, on a terminal, bars of those that run."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
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

if TYPE_CHECKING:
    from harness.plan.job import Job
    from harness.run.outcome import Outcome

FEW = 20
"""Jobs elsewhere that have a bar each; the sentence below the bars counts the rest."""


class Bars(Protocol):
    """Shows, or writes down, how far a piece of work is."""

    def bar(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """A bar with `total` steps; call the value with the number of steps done."""
        ...


class Watcher(Bars, Protocol):
    """Notified of what a batch of jobs does while it runs; its bars show progress inside a job."""

    def began(self, job: "Job") -> None:
        """A job runs from now on."""
        ...

    def ended(self, job: "Job", outcome: "Outcome") -> None:
        """A job is settled. One with a failed need is settled without having begun."""
        ...


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A job that runs on another machine, as far as is known here.

    Attributes:
        description: its title, where it runs, and its present step.
        done, total: steps of that; None where it shows none.
    """

    description: str
    done: int = 0
    total: int | None = None


class Display:
    """The `Watcher` of a person, the same for all launchers.

    Each job that ends is one line; artifacts and cells are counted apart. On a terminal there is a bar for each running job
    and for each piece of work inside those of this process. `with Display(console) as display` shows the bars.

    Args:
        console: where all goes.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._board = _Board(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            _Steps(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._shown: dict[str, TaskID] = {}
        self._total = {"cells": 0, "artifacts": 0}
        self._ended = {"cells": 0, "artifacts": 0}

    def __enter__(self) -> Self:
        self._board.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._board.stop()

    def expect(self, jobs: Iterable["Job"]) -> None:
        """Count these jobs as those that are going to end."""
        for job in jobs:
            self._total[_kind(job)] += 1

    def began(self, job: "Job") -> None:
        """As `Watcher.began`: show a bar for a job of this machine."""
        self._shown[job.place] = self._board.add_task(job.title, total=None)

    def ended(self, job: "Job", outcome: "Outcome") -> None:
        """As `Watcher.ended`: print a line."""
        if (shown := self._shown.pop(job.place, None)) is not None:
            self._board.remove_task(shown)
        kind = _kind(job)
        self._ended[kind] += 1
        line = f"{self._ended[kind]}/{self._total[kind]} {job.title}"
        if outcome.reason is not None:
            self._print(f"[red]✗[/red] {escape(f'{line}: {outcome.reason}')}")
        else:
            time = "" if outcome.seconds is None else f" [dim]{outcome.seconds:.1f} s[/dim]"
            self._print(f"[green]✓[/green] {escape(line)}{time}")

    @contextlib.contextmanager
    def bar(self, description: str, total: int) -> Iterator[Advance]:
        """As `Bars.bar`."""
        task = self._board.add_task(description, total=total)

        def advance(steps: int = 1) -> None:
            self._board.advance(task, steps)

        try:
            yield advance
        finally:
            self._board.remove_task(task)

    def follow(self, running: Mapping[str, Elsewhere], sentence: str) -> None:
        """Show these jobs as the ones that run elsewhere, in place of those of the last call.

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
        """Print something that stops nothing but should be known."""
        self._print(f"[yellow]note[/yellow] {escape(sentence)}")

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)


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
        return super().render(task) if task.total else Text()


def _kind(job: "Job") -> str:
    return "cells" if job.is_cell else "artifacts"
