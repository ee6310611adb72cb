"""How a launch is doing, as a table or as data: read from the store, the launch folders and the queue; changes nothing."""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.errors import UserError
from harness.plan.estimate import duration
from harness.plan.plan import Plan
from harness.store.store import DONE, FAILED
from slurm.launch import Job, Launch, launches
from slurm.queue import JobState, State, states
from slurm.state import Seen, Sight

ORDER = ("running", "pending", "to do", "done", "failed", "cannot run")
COLOURS = {"running": "cyan", "done": "green", "failed": "red", "cannot run": "yellow"}
FEW = 60
"""Cells that are all listed; of more, only those that run or have failed."""


@dataclass(frozen=True, slots=True)
class Row:
    """A cell, or an artifact that is being built.

    Attributes:
        place: its folder in the store; empty for what cannot be a cell here.
        state: one of `ORDER`.
        age_s: how long it has been so; None where that is not known.
        node, job: where it runs and as what.
        progress: how far it is, for people.
        note: why it failed, waits or cannot run.
        log: file that says more of a failure.
    """

    place: str
    title: str
    state: str
    age_s: float | None = None
    node: str = ""
    job: str = ""
    progress: str = ""
    note: str = ""
    log: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """All cells of a suite and the artifacts that are being built for it.

    Attributes:
        silence: what SLURM's commands said instead of an answer, or empty.
    """

    rows: Sequence[Row]
    launches: Sequence[str] = ()
    silence: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Number of cells by state, in the order of `ORDER`."""
        found = Counter(row.state for row in self.rows if not row.place.startswith("artifacts/"))
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
            "slurm": self.silence or "answers" if self.launches else "",
            "cells": [asdict(row) for row in self.rows if not row.place.startswith("artifacts/")],
            "artifacts": [asdict(row) for row in self.rows if row.place.startswith("artifacts/")],
        }

    def table(self, everything: bool = False) -> RenderableType:
        """The same for people; with `everything` also of many cells those that wait or are done."""
        shown = [row for row in self.rows if everything or len(self.rows) <= FEW or row.state in ("running", "failed")]
        lines: list[RenderableType] = [_table(shown)] if shown else []
        if self.silence:
            lines.append(Text(f"SLURM does not answer: {self.silence}", style="yellow"))
        return Group(*lines, Text(self.sentence))


def status(plan: Plan) -> Status:
    """How the cells of a plan are doing now."""
    open_ones = launches(plan.store)
    seen, silence = _jobs(open_ones)
    rows = []
    for planned in plan.cells:
        title = " ".join(part for part in planned.title if part)
        if planned.cell is None:
            rows.append(Row("", title, "cannot run", note=planned.missing[0]))
            continue
        place = f"cells/{planned.cell.folder}"
        folder = plan.store.cell(planned.cell.folder)
        if folder.is_done:
            rows.append(Row(place, title, "done", _age_s((folder.path / DONE).stat().st_mtime)))
        elif (reason := folder.failure) is not None:
            age_s = _age_s((folder.path / FAILED).stat().st_mtime)
            rows.append(Row(place, title, "failed", age_s, note=reason, log=str(folder.path / "log.txt")))
        elif place in seen:
            rows.append(_of_job(place, title, seen[place]))
        else:
            rows.append(Row(place, title, "to do"))
    builds = {place: one for place, one in seen.items() if place.startswith("artifacts/")}
    rows += [row for place, one in builds.items() if (row := _of_job(place, place, one)).state == "running"]
    return Status(rows, [launch.name for launch in open_ones], silence)


def board(sight: Sight, total: int) -> RenderableType:
    """What a driver shows while it waits: what runs, and how much there is of the rest."""
    running, waiting = [], 0
    for seen in sight.alive():
        for place in seen.job.covers:
            if place in sight.tasks:
                row = _of_job(place, sight.tasks[place].title, seen)
                running += [row] if row.state == "running" else []
                waiting += row.state != "running"
    settled = total - len(sight.tasks)
    sentence = f"{len(running)} running, {waiting} pending, {settled} of {total} settled, {len(sight.failed)} failed"
    return Group(_table(running[:FEW]), Text(sentence)) if running else Text(sentence)


def last_job(open_ones: Iterable[Launch], folder: str) -> tuple[Launch, Job] | None:
    """The job that was submitted last for a cell, by the name of its folder."""
    place = f"cells/{folder}"
    jobs = [(launch, job) for launch in open_ones for job in launch.jobs if place in job.covers]
    return jobs[-1] if jobs else None


def _jobs(open_ones: Sequence[Launch]) -> tuple[Mapping[str, Seen], str]:
    """The last job of each task, ended or not, and what SLURM said in place of an answer."""
    found: dict[str, Seen] = {}
    silence = ""
    for launch in open_ones:
        ids = [job.id for job in launch.jobs if job.id and job.ending is None]
        try:
            told = states(ids, launch.name)
        except UserError as error:  # a store that lies on a machine without SLURM
            told = {job: JobState(job, State.UNREACHABLE, launch.name, reason=error.message) for job in ids}
        for job in launch.jobs:
            unknown = JobState(job.id, job.ending.state if job.ending else State.PENDING, launch.name)
            state = told.get(job.id, unknown)
            silence = state.reason or "no answer" if state.state is State.UNREACHABLE else silence
            found |= dict.fromkeys(job.covers, Seen(launch, job, state))
    return found, silence


def _of_job(place: str, title: str, seen: Seen) -> Row:
    """A task that is not settled, as its last job tells of it."""
    job, state = seen.job, seen.state
    if not state.is_live:
        words = job.ending.words if job.ending else str(state)
        return Row(
            place, title, "to do", job=job.id, note=f"its job ended ({words}); a driver decides what becomes of it"
        )
    if state.state is not State.PENDING and (beat := seen.beat) is not None and beat.place == place:
        steps = f"{beat.step} {beat.steps_done}/{beat.steps_total}" if beat.step else ""
        age_s = _age_s(datetime.fromisoformat(beat.since).timestamp())
        return Row(place, title, "running", age_s, state.node or beat.host, job.id, steps)
    waits = "" if state.state is State.PENDING else "in a job that runs"
    age_s = _age_s(datetime.fromisoformat(job.asked).timestamp())
    return Row(place, title, "pending", age_s, state.node, job.id, note=waits or state.reason)


def _table(rows: Sequence[Row]) -> Table:
    table = Table(title_justify="left")
    for column in ("cell", "state", "age", "node", "job", "progress"):
        table.add_column(column, overflow="fold")
    for row in rows:
        said = "\n".join(part for part in (row.progress, row.note, row.log) if part)
        age = "" if row.age_s is None else duration(row.age_s)
        colour = COLOURS.get(row.state, "default")
        table.add_row(row.title, Text(row.state, style=colour), age, row.node, row.job, Text(said))
    return table


def _age_s(moment: float) -> float:
    return max(0.0, time.time() - moment)
