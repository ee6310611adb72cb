"""Progress bars for what takes long; silent where nobody watches."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from harness.api import Advance


class Bars(Protocol):
    """What shows, or writes down, how far a piece of work is."""

    def bar(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """A bar with `total` steps; call the value with the number of steps done."""
        ...


class ProgressBars:
    """One set of bars for a whole run; each piece of work adds its own and takes it away when it ends."""

    def __init__(self, console: Console) -> None:
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "ProgressBars":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @contextlib.contextmanager
    def bar(self, description: str, total: int) -> Iterator[Advance]:
        """A bar with `total` steps; call the yielded value with the number of steps done."""
        task = self._bars.add_task(description, total=total)

        def advance(steps: int = 1) -> None:
            self._bars.advance(task, steps)

        try:
            yield advance
        finally:
            self._bars.remove_task(task)
