"""Status, cancellation and logs of a suite, from the store and the launchers; nothing here changes a result."""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from harness import registry
from harness.api import JobStatus, Launcher
from harness.errors import UserError
from harness.plan.estimate import duration
from harness.plan.job import place_of
from harness.plan.plan import Plan, PlannedCell
from harness.run.start import lacks
from harness.store.store import DONE, FAILED, Store, only_cell
from harness.suite import Suite

ORDER = ("running", "pending", "to do", "done", "failed", "cannot run")
COLOURS = {"running": "cyan", "done": "green", "failed": "red", "cannot run": "yellow"}
FEW = 60
"""Up to this many cells are all listed; beyond, only those that run or have failed."""


@dataclass(frozen=True, slots=True)
class Status:
    """All cells of a suite, and the artifacts that are being built for it.

    Attributes:
        cells: in the order of the suite.
        artifacts: those that run.
        launches: names of unfinished launches.
        silence: sentences about schedulers that do not answer.
        obstacles: why cells cannot run from here, each reason once.
    """

    cells: Sequence[JobStatus]
    artifacts: Sequence[JobStatus] = ()
    launches: Sequence[str] = ()
    silence: Sequence[str] = ()
    obstacles: Sequence[str] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Number of cells by state, in the order of `ORDER`."""
        found = Counter(cell.state for cell in self.cells)
        return {state: found[state] for state in ORDER if found[state]}

    @property
    def sentence(self) -> str:
        """`3 running, 5 done`."""
        return ", ".join(f"{count} {state}" for state, count in self.counts.items()) or "no cells"

    def data(self) -> dict[str, Any]:
        """The content of `harness status --json`."""
        return {
            "counts": self.counts,
            "launches": list(self.launches),
            "silence": list(self.silence),
            "obstacles": list(self.obstacles),
            "cells": [asdict(cell) for cell in self.cells],
            "artifacts": [asdict(artifact) for artifact in self.artifacts],
        }

    def table(self, everything: bool = False) -> RenderableType:
        """The status as a table; with many cells only those that run or have failed, unless `everything`."""
        rows = [*self.cells, *self.artifacts]
        shown = [row for row in rows if everything or len(rows) <= FEW or row.state in ("running", "failed")]
        lines: list[RenderableType] = [_table(shown)] if shown else []
        lines += [Text(sentence, style="yellow") for sentence in self.silence]
        lines += [Text(f"cannot run: {reason}", style="yellow") for reason in self.obstacles]
        return Group(*lines, Text(self.sentence))


def status(plan: Plan, launcher: Launcher | None = None) -> Status:
    """State of the cells of a plan, and what stops a launcher from running more of them."""
    states = [launcher.state(plan.store) for launcher in registry.launchers.all().values()]
    jobs = {place: job for state in states for place, job in state.jobs.items()}
    cells = [_of_cell(planned, plan.store, jobs) for planned in plan.cells]
    builds = [job for place, job in jobs.items() if place.startswith("artifacts/") and job.state == "running"]
    return Status(
        cells,
        [job for job in builds if not plan.store.folder(job.place).is_settled],
        [name for state in states for name in state.launches],
        [state.silence for state in states if state.silence],
        lacks(plan, launcher) if any(cell.state in ("to do", "cannot run") for cell in cells) else (),
    )


def show(
    plan: Plan,
    launcher: Launcher,
    console: Console,
    *,
    as_json: bool = False,
    watch_s: float | None = None,
    everything: bool = False,
) -> int:
    """Print the status of a plan's cells, once or repeatedly until no cell is pending.

    Args:
        plan: its cells.
        launcher: that runs them.
        console: for tables; JSON goes to stdout.
        as_json: as data, for scripts.
        watch_s: seconds between two looks; None for only one.
        everything: of many cells, also list those that wait or are done.

    Returns:
        1 if a cell has failed, else 0.
    """
    seen = status(plan, launcher)
    if as_json:
        print(json.dumps(seen.data(), indent=1, ensure_ascii=False))
    elif watch_s is None:
        console.print(seen.table(everything))
    else:
        with Live(seen.table(everything), console=console, auto_refresh=False) as live:
            while seen.counts.keys() & {"running", "pending", "to do"}:
                time.sleep(watch_s)
                seen = status(plan, launcher)
                live.update(seen.table(everything), refresh=True)
    return 1 if "failed" in seen.counts else 0


def cancel(store: Store, suite: Suite, console: Console) -> int:
    """Cancel the unfinished launches of a suite (see `Launcher.cancel`). Finished cells stay; unfinished ones are still to do.

    Raises:
        UserError: if there is none, if a scheduler cannot be reached, or if a job does not end.
    """
    count = 0
    for launcher in registry.launchers.all().values():
        for name in launcher.cancel(store, suite):
            console.print(f"cancelled {name}")
            count += 1
    if not count:
        others = [name for launcher in registry.launchers.all().values() for name in launcher.state(store).launches]
        also = f" with these options, only {', '.join(others)}" if others else ""
        raise UserError(
            f"{store.root}: no launch of {suite.name}.{suite.scale} is running{also}",
            fix=suite.command("status", store.root),
        )
    return 0


def logs(store: Store, name: str, lines: int) -> int:
    """Print the end of a cell's log or, if the cell is not settled, of its last job's output.

    Args:
        store: where the cell is, or will be.
        name: of its folder, or the beginning of that or of its id.
        lines: of each file, at most.

    Raises:
        UserError: if the name is not that of exactly one cell.
    """
    unsettled = dict(_logs_of_jobs(store))
    folder = only_cell(store, name, store.cells() | unsettled.keys())
    files = [store.cell(folder).path / "log.txt"]
    has_job = folder in unsettled and not store.cell(folder).is_settled
    if has_job:
        files = list(unsettled[folder])
    existing = [file for file in files if file.is_file()]
    if has_job and not existing:
        print("the job of this cell has not started")
    for file in existing:
        print(f"── {file}")
        print("\n".join(file.read_text(errors="replace", encoding="utf-8").splitlines()[-lines:]))
    return 0


def _of_cell(planned: PlannedCell, store: Store, jobs: Mapping[str, JobStatus]) -> JobStatus:
    title = " ".join(part for part in planned.title if part)
    if planned.cell is None:
        return JobStatus("", title, "cannot run", note=planned.missing[0])
    place = place_of(planned.cell)
    folder = store.folder(place)
    if folder.is_done:
        return JobStatus(place, title, "done", _age_s(folder.path / DONE))
    if (reason := folder.failure) is not None:
        age_s, log = _age_s(folder.path / FAILED), str(folder.path / "log.txt")
        return JobStatus(place, title, "failed", age_s, note=reason, log=log)
    return replace(jobs[place], title=title) if place in jobs else JobStatus(place, title, "to do")


def _logs_of_jobs(store: Store) -> Iterator[tuple[str, Sequence[Path]]]:
    """Log files of the jobs of unfinished launches, by the folder of the cell."""
    for launcher in registry.launchers.all().values():
        for place, files in launcher.logs(store).items():
            if place.startswith("cells/"):
                yield place.removeprefix("cells/"), files


def _table(rows: Sequence[JobStatus]) -> Table:
    table = Table(title_justify="left")
    for column in ("cell", "state", "age", "node", "job", "progress"):
        table.add_column(column, overflow="fold")
    for row in rows:
        said = "\n".join(part for part in (row.progress, row.note, row.log) if part)
        age = "" if row.age_s is None else duration(row.age_s)
        colour = COLOURS.get(row.state, "default")
        table.add_row(row.title, Text(row.state, style=colour), age, row.node, row.job, Text(said))
    return table


def _age_s(file: Path) -> float:
    return max(0.0, time.time() - file.stat().st_mtime)
