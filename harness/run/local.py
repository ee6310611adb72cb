"""The local launcher: what there is to do, on this machine, in this process or in several at once."""

import itertools
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.markup import escape

from harness.api import Advance
from harness.plan.plan import Plan
from harness.run.processes import Workers
from harness.run.progress import ProgressBars
from harness.run.task import Outcome, RunCell, Task
from harness.run.work import Unit, reopen, run_unit, to_do, waves

PACKING = 8
"""Tasks on one model that a process takes at a time, where there are several processes."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a launch did: folders of cells by how they ended.

    Attributes:
        finished: those that it has made.
        failed: the others that it was to make, each with the reason.
        kept: those of the plan that were done before.
    """

    finished: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    kept: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan, tasks: Sequence[Task]) -> Self:
        """What has become of tasks of a plan."""
        store = plan.store
        cells = {task.cell.folder: task.folder(store) for task in tasks if isinstance(task, RunCell)}
        others = [cell.folder for cell in plan.runnable if cell.folder not in cells]
        return cls(
            finished=tuple(name for name, folder in cells.items() if folder.is_done),
            failed=tuple((name, reason) for name, folder in cells.items() if (reason := folder.failure) is not None),
            kept=tuple(name for name in others if store.cell(name).is_done),
        )


def launch(plan: Plan, console: Console, processes: int | None = None, packing: int = PACKING) -> Summary:
    """Run what a plan has to do. A failure stops nothing but what depends on it.

    Args:
        plan: of a store that nobody else writes to.
        console: gets a line for each task that ends.
        processes: units that run at once; by default one for each GPU, else one. A single one is this process itself.
        packing: tasks of a unit, at most, where there are several processes.
    """
    tasks = to_do(plan)
    reopen(plan.store, tasks)
    devices = gpus() if plan.device == "cuda" else []
    processes = processes or max(1, len(devices))
    with ProgressBars(console) as bars:
        screen = Screen(console, bars, tasks, processes)
        if processes == 1:
            run_unit(Unit("all", plan.store.root, tuple(tasks), plan.device, plan.suite.threads), screen)
        else:
            with Workers(processes, devices, screen) as workers:
                for units in waves(plan, tasks, packing):
                    workers.run(units)
    return Summary.of(plan, tasks)


def gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; asked of the kernel, not of torch.

    As CUDA reads the variable: a name that is none, such as -1, hides all that come after it.
    """
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        names = (name.strip() for name in allowed.split(","))
        return list(itertools.takewhile(lambda name: name not in {"", "-1"}, names))
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


class Screen:
    """A `harness.run.work.Watcher` that prints a line for each task that ends.

    While tasks run, it shows the bars of the one in this process, or one bar for each that runs in another.
    """

    def __init__(self, console: Console, bars: ProgressBars, tasks: Sequence[Task], processes: int = 1) -> None:
        self._console = console
        self._bars = bars
        self._processes = processes
        self._shown: dict[str, ExitStack] = {}
        cells = sum(isinstance(task, RunCell) for task in tasks)
        self._total = {True: cells, False: len(tasks) - cells}
        self._ended = {True: 0, False: 0}

    def bar(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """As `Bars.bar`."""
        return self._bars.bar(description, total)

    def began(self, task: Task) -> None:
        """As `Watcher.began`."""
        if self._processes > 1:
            self._shown[task.place] = ExitStack()
            self._shown[task.place].enter_context(self._bars.bar(task.title, 1))

    def ended(self, task: Task, outcome: Outcome) -> None:
        """As `Watcher.ended`; artifacts and cells are counted apart."""
        self._shown.pop(task.place, ExitStack()).close()
        kind = isinstance(task, RunCell)
        self._ended[kind] += 1
        line = f"{self._ended[kind]}/{self._total[kind]} {task.title}"
        if outcome.reason is None:
            self._console.print(f"[green]✓[/green] {escape(line)} [dim]{outcome.seconds:.1f} s[/dim]")
        else:
            self._console.print(f"[red]✗[/red] {escape(f'{line}: {outcome.reason}')}")
