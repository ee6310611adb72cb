"""A launch: the folder that says what was submitted and how it ended, so that a driver that dies is followed by another.

```text
<store>/launches/<suite>.<scale>-<time>-<4 hex>/
  launch.json             what was launched, with which profile and command
  jobs.jsonl              one line each: a unit is asked for, was refused, has ended; units are jobs; tasks are to be run again
  progress/<unit>.json    how far a unit is, written by its job
  submitit/               what submitit keeps: job scripts, pickles, stdout and stderr
  ended.json              how the launch ended
```

SLURM's jobs have the name of the folder, because a cluster that is set up anew gives its ids away again. One driver writes,
by appending whole lines; a line that a killed driver did not finish counts as not written.
"""

import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from harness.files import explained, write_json
from harness.store.store import Store
from slurm.queue import State


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ended, as far as it matters for the tasks that it has not settled.

    Attributes:
        state: none of those that may still go on.
        words: the same for people, with node and time.
        has_begun: whether it came to any task, behind the profile's setup and the start of Python.
        place: of the task that was running then; empty between tasks.
        has_moved: whether that task, a sequence, kept a block in this job, so that another job goes on from there.
        signal: that killed the job, if one did.
    """

    state: State
    words: str
    has_begun: bool
    place: str = ""
    has_moved: bool = False
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One unit and the job that runs it.

    Attributes:
        unit: name, unique in its launch.
        resource: name of its resource class.
        covers: places of its tasks, but for those that were given up and are to be run again since.
        asked: when SLURM was asked to run it; UTC, ISO.
        id: `123_4`, or empty as long as nobody knows whether SLURM has taken it.
        ending: None while it may still write results.
    """

    unit: str
    resource: str
    covers: tuple[str, ...]
    asked: str
    id: str = ""
    ending: Ending | None = None


class Launch:
    """A launch folder and what its `jobs.jsonl` says. What is changed here is in the file first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._jobs: dict[str, Job] = {}
        self._batches = 0
        for record in self._records():
            self._apply(record)

    @classmethod
    def create(cls, store: Store, suite: str, scale: str, facts: Mapping[str, Any]) -> Self:
        """A new launch folder of a suite; `facts` are kept in its launch.json."""
        now = datetime.now(UTC)
        path = store.root.resolve() / "launches" / f"{suite}.{scale}-{now:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
        for folder in ("progress", "submitit"):
            with explained(path):
                (path / folder).mkdir(parents=True)
        write_json(path / "launch.json", {"suite": suite, "scale": scale, "created": now.isoformat(), **facts})
        return cls(path)

    @property
    def name(self) -> str:
        """Name of the folder and of all its jobs."""
        return self.path.name

    @property
    def facts(self) -> dict[str, Any]:
        """The content of launch.json."""
        content: dict[str, Any] = json.loads((self.path / "launch.json").read_text())
        return content

    @property
    def jobs(self) -> list[Job]:
        """All its jobs in the order in which they were asked for."""
        return list(self._jobs.values())

    @property
    def submitit(self) -> Path:
        """The folder that submitit writes to."""
        return self.path / "submitit"

    def progress(self, unit: str) -> Path:
        """The file in which a unit says how far it is."""
        return self.path / "progress" / f"{unit}.json"

    def logs(self, job: Job) -> list[Path]:
        """What a job has printed, stderr last; submitit names the files."""
        return [
            file for end in ("out", "err") if job.id and (file := self.submitit / f"{job.id}_0_log.{end}").is_file()
        ]

    def ask(self, resource: str, units: Iterable[tuple[str, Sequence[str]]]) -> list[Job]:
        """Write down that SLURM is about to be asked for jobs, by stem of their names and places of their tasks."""
        self._batches += 1
        now = datetime.now(UTC).isoformat()
        named = {f"{self._batches:03d}-{stem}": list(covers) for stem, covers in units}
        self._append(
            [{"asked": unit, "resource": resource, "covers": covers, "time": now} for unit, covers in named.items()]
        )
        return [self._jobs[unit] for unit in named]

    def taken(self, ids: Mapping[str, str]) -> None:
        """Write down ids that SLURM has given, by unit; all in one line, so that it is known of all or of none."""
        self._append([{"taken": dict(ids)}])

    def refused(self, units: Iterable[str], why: str) -> None:
        """Write down that units are no jobs."""
        self._append([{"unit": unit, "refused": why} for unit in units])

    def ended(self, unit: str, ending: Ending) -> None:
        """Write down how a job ended that has left tasks unsettled."""
        self._append([{"unit": unit, "ended": asdict(ending)}])

    def again(self, places: Iterable[str]) -> None:
        """Write down that what came of tasks so far no longer counts."""
        forgotten = set(places) & {place for job in self._jobs.values() for place in job.covers}
        if forgotten:
            self._append([{"again": sorted(forgotten)}])

    @property
    def is_there(self) -> bool:
        """Whether nobody has removed its folder."""
        return (self.path / "launch.json").is_file()

    @property
    def is_over(self) -> bool:
        """Whether nobody is to go on with it."""
        return (self.path / "ended.json").is_file()

    def close(self, how: str) -> None:
        """Say that nobody is to go on with it, and why."""
        write_json(self.path / "ended.json", {"how": how, "time": datetime.now(UTC).isoformat()})

    def reopen(self) -> None:
        """Take that back."""
        (self.path / "ended.json").unlink(missing_ok=True)

    def _append(self, records: Sequence[Mapping[str, Any]]) -> None:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
        with explained(self.path), (self.path / "jobs.jsonl").open("a+b") as file:
            if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                lines = b"\n" + lines
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        for record in records:
            self._apply(record)

    def _records(self) -> Iterator[dict[str, Any]]:
        file = self.path / "jobs.jsonl"
        for line in file.read_text(errors="replace").split("\n") if file.is_file() else ():
            try:
                yield json.loads(line)
            except ValueError:
                continue  # a driver was killed, or the disk was full, while it wrote this line

    def _apply(self, record: Mapping[str, Any]) -> None:
        if "asked" in record:
            unit = record["asked"]
            self._jobs[unit] = Job(unit, record["resource"], tuple(record["covers"]), record["time"])
            self._batches = int(unit.partition("-")[0])
        elif "again" in record:
            forgotten = set(record["again"])
            for unit, job in self._jobs.items():
                left = tuple(place for place in job.covers if place not in forgotten)
                self._jobs[unit] = job if left == job.covers else replace(job, covers=left)
        elif "taken" in record:
            for unit in record["taken"].keys() & self._jobs.keys():
                self._jobs[unit] = replace(self._jobs[unit], id=record["taken"][unit])
        elif (unit := record["unit"]) not in self._jobs:
            return  # the line that asked for it was lost with a full disk
        elif "refused" in record:
            del self._jobs[unit]
        else:
            ending = record["ended"]
            self._jobs[unit] = replace(self._jobs[unit], ending=Ending(**{**ending, "state": State(ending["state"])}))


def launches(store: Store) -> list[Launch]:
    """Launches of a store that are not over, the oldest first."""
    found = sorted((store.root.resolve() / "launches").glob("*/launch.json"), key=lambda file: file.parent.name[-20:])
    return [Launch(file.parent) for file in found if not (file.parent / "ended.json").is_file()]
