"""The local launcher: what there is to do, on this machine, in this process or in several at once."""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from harness.plan import Plan
from harness.processes import Workers
from harness.progress import ProgressBars
from harness.task import Outcome, RunCell, Task
from harness.work import Unit, reopen, run_unit, to_do, waves
from methods.base import Advance

PACKING = 8
"""Tasks on one model that a process takes at a time, where there are several processes."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a launch did: folders of cells by how they ended."""

    finished: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    kept: tuple[str, ...]


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
    cells = {task.cell.folder: task.folder(plan.store) for task in tasks if isinstance(task, RunCell)}
    return Summary(
        finished=tuple(name for name, folder in cells.items() if folder.is_done),
        failed=tuple((name, reason) for name, folder in cells.items() if (reason := folder.failure) is not None),
        kept=tuple(cell.folder for cell in plan.runnable if cell.folder not in cells),
    )


def gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; asked of the kernel, not of torch."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [name.strip() for name in allowed.split(",") if name.strip()]
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


class Screen:
    """A `harness.work.Watcher` that prints a line for each task that ends.

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
            self._console.print(f"[green]✓[/green] {line} [dim]{outcome.seconds:.1f} s[/dim]")
        else:
            self._console.print(f"[red]✗[/red] {line}: {outcome.reason}")
