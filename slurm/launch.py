"""A launch: the folder that records what was submitted and how it ended, so that another driver can take over from a dead one.

```text
<store>/launches/<suite>.<scale>[.<variant>]-<time>-<4 hex>/
  launch.json             what was launched, with which profile and command
  jobs.jsonl              one line each: a batch is asked for, was refused, has ended; ids of batches; jobs are to be run again
  progress/<batch>.json   how far a batch is, written by its SLURM job
  submitit/               what submitit keeps: job scripts, pickles, stdout and stderr
  ended.json              how the launch ended
```

All SLURM jobs have the name of the folder, because a reinstalled cluster assigns its job ids again. One driver writes,
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
from harness.suite import Suite
from slurm.queue import State


@dataclass(frozen=True, slots=True)
class Ending:
    """How a SLURM job ended, as far as it matters for the unsettled jobs of its batch.

    Attributes:
        state: none of those in which it may still run.
        words: the same for people, with node and time.
        has_begun: whether it reached any job of its batch, after the profile's setup and the start of Python.
        place: of the job that was running then; empty between jobs.
        has_moved: whether that job, a sequence, kept a block in this SLURM job, so that another one continues from there.
        signal: that killed the SLURM job, if one did.
    """

    state: State
    words: str
    has_begun: bool
    place: str = ""
    has_moved: bool = False
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class Submission:
    """A batch, and the SLURM job that runs it.

    Attributes:
        batch: name of the batch, unique in its launch.
        resource: name of its resource class.
        covers: places of its jobs, except those that were given up and are to be run again since.
        asked: when SLURM was asked to run it; UTC, ISO.
        id: of the SLURM job, `123_4`; empty as long as nobody knows whether SLURM has taken it.
        ending: None while the SLURM job may still write results.
    """

    batch: str
    resource: str
    covers: tuple[str, ...]
    asked: str
    id: str = ""
    ending: Ending | None = None


class Launch:
    """A launch folder and the content of its `jobs.jsonl`. Every change is written to the file first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._submissions: dict[str, Submission] = {}
        self._arrays = 0
        for record in self._records():
            self._apply(record)

    @classmethod
    def create(
        cls,
        store: Store,
        suite: str,
        scale: str,
        facts: Mapping[str, Any],
        *,
        variant: str = "",
        only: Sequence[str] = (),
    ) -> Self:
        """A new launch folder.

        Args:
            store: gets it.
            suite, scale, variant: as in `harness.suite.Suite`.
            facts: kept in launch.json as well.
            only: filters of the command.
        """
        now = datetime.now(UTC)
        stem = ".".join(part for part in (suite, scale, variant) if part)
        path = store.root.resolve() / "launches" / f"{stem}-{now:%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
        for folder in ("progress", "submitit"):
            with explained(path):
                (path / folder).mkdir(parents=True)
        about = {"suite": suite, "scale": scale, "variant": variant, "only": sorted(only), "created": now.isoformat()}
        write_json(path / "launch.json", {**about, **facts})
        return cls(path)

    @property
    def name(self) -> str:
        """Name of the folder and of all its SLURM jobs."""
        return self.path.name

    @property
    def facts(self) -> dict[str, Any]:
        """The content of launch.json."""
        content: dict[str, Any] = json.loads((self.path / "launch.json").read_text(encoding="utf-8"))
        return content

    def belongs_to(self, suite: Suite) -> bool:
        """Whether it was launched with this suite's scale and options, and runs nothing that its `--only` leaves out."""
        facts, only = self.facts, filters(suite)
        named = (facts["suite"], facts["scale"], facts["variant"]) == (suite.name, suite.scale, suite.variant)
        return named and only in ([], facts["only"])

    @property
    def submissions(self) -> list[Submission]:
        """All its submissions, in the order in which SLURM was asked for them."""
        return list(self._submissions.values())

    @property
    def submitit(self) -> Path:
        """The folder that submitit writes to."""
        return self.path / "submitit"

    def progress(self, batch: str) -> Path:
        """The progress file of a batch."""
        return self.path / "progress" / f"{batch}.json"

    def logs(self, submission: Submission) -> list[Path]:
        """Output files of a SLURM job, stderr last; submitit names them, and they exist once the job starts."""
        return [self.submitit / f"{submission.id}_0_log.{end}" for end in ("out", "err")] if submission.id else []

    def ask(self, resource: str, batches: Iterable[tuple[str, Sequence[str]]]) -> list[Submission]:
        """Record that batches are about to be submitted, given by the stem of their names and the places of their jobs."""
        self._arrays += 1
        now = datetime.now(UTC).isoformat()
        named = {f"{self._arrays:03d}-{stem}": list(covers) for stem, covers in batches}
        self._append(
            [{"asked": batch, "resource": resource, "covers": covers, "time": now} for batch, covers in named.items()]
        )
        return [self._submissions[batch] for batch in named]

    def taken(self, ids: Mapping[str, str]) -> None:
        """Record the job ids assigned by SLURM, by batch; in one line, so that either all of them are known or none."""
        self._append([{"taken": dict(ids)}])

    def refused(self, batches: Iterable[str], why: str) -> None:
        """Record that SLURM has not accepted these batches."""
        self._append([{"batch": batch, "refused": why} for batch in batches])

    def ended(self, batch: str, ending: Ending) -> None:
        """Record how a SLURM job that left jobs unsettled has ended."""
        self._append([{"batch": batch, "ended": asdict(ending)}])

    def again(self, places: Iterable[str]) -> None:
        """Record that earlier outcomes of these jobs no longer count."""
        forgotten = set(places) & {place for each in self._submissions.values() for place in each.covers}
        if forgotten:
            self._append([{"again": sorted(forgotten)}])

    @property
    def is_there(self) -> bool:
        """Whether its folder still exists."""
        return (self.path / "launch.json").is_file()

    @property
    def is_over(self) -> bool:
        """Whether it is closed, so that no driver continues it."""
        return (self.path / "ended.json").is_file()

    def close(self, how: str) -> None:
        """Close it, with the reason."""
        write_json(self.path / "ended.json", {"how": how, "time": datetime.now(UTC).isoformat()})

    def reopen(self) -> None:
        """Open it again after `close`."""
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
        for line in file.read_text(errors="replace", encoding="utf-8").split("\n") if file.is_file() else ():
            try:
                yield json.loads(line)
            except ValueError:
                continue  # a driver was killed, or the disk was full, while it wrote this line

    def _apply(self, record: Mapping[str, Any]) -> None:
        if "asked" in record:
            batch = record["asked"]
            self._submissions[batch] = Submission(batch, record["resource"], tuple(record["covers"]), record["time"])
            self._arrays = int(batch.partition("-")[0])
        elif "again" in record:
            forgotten = set(record["again"])
            for batch, submission in self._submissions.items():
                left = tuple(place for place in submission.covers if place not in forgotten)
                if left != submission.covers:
                    self._submissions[batch] = replace(submission, covers=left)
        elif "taken" in record:
            for batch in record["taken"].keys() & self._submissions.keys():
                self._submissions[batch] = replace(self._submissions[batch], id=record["taken"][batch])
        elif (batch := record.get("batch")) not in self._submissions:
            return  # the line that asked for it was lost with a full disk
        elif "refused" in record:
            del self._submissions[batch]
        else:
            ending = Ending(**{**record["ended"], "state": State(record["ended"]["state"])})
            self._submissions[batch] = replace(self._submissions[batch], ending=ending)


def filters(suite: Suite) -> list[str]:
    """The suite's `--only`, as launch.json has it."""
    return sorted(suite.options.get("only", ()))


def launches(store: Store) -> list[Launch]:
    """Open launches of a store, oldest first."""
    found = sorted((store.root.resolve() / "launches").glob("*/launch.json"), key=lambda file: file.parent.name[-20:])
    return [Launch(file.parent) for file in found if not (file.parent / "ended.json").is_file()]
