"""The state of jobs according to SLURM, with or without accounting; nothing is certain while SLURM does not answer.

One `squeue` call lists every job that the controller remembers: those that wait and run, and for `MinJobAge` seconds (300 by
default) those that have ended, with their exit codes; `scontrol show job` reads the same memory. After that `sacct` knows, on
sites with accounting. What neither knows is GONE. An element of an array that is cancelled while it waits is gone at once.
"""

import os
import re
import subprocess
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from harness.errors import UserError

TIMEOUT_S = 60.0
"""Patience for one command; `squeue` itself gives up on a controller after some ten seconds."""


class State(StrEnum):
    """State of a job."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out of memory"
    NODE_FAIL = "node failure"
    PREEMPTED = "preempted"
    GONE = "gone"
    """SLURM answers and does not know the job: it is not waiting and not running, and nobody says how it ended."""
    UNREACHABLE = "unreachable"
    """SLURM does not answer; the job may well be running."""


@dataclass(frozen=True, slots=True)
class JobState:
    """One job, or one element of an array, as SLURM describes it.

    Attributes:
        job_id: `123`, or `123_4` for an element of an array.
        state: PENDING also after a requeue; RUNNING until the node has been cleaned up.
        name: the job's name.
        node: where it runs or ran; empty before.
        elapsed_s: since its last start, in whole seconds.
        start: when that was, UTC; None for a job that waits or is not known.
        reason: SLURM's word for why it waits or how it ended, or what a silent controller's command printed; may be empty.
        exit_code: of the job script, once it has ended by itself.
        signal: that ended the job script, or the last command in it.
    """

    job_id: str
    state: State
    name: str = ""
    node: str = ""
    elapsed_s: int = 0
    start: datetime | None = None
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None

    @property
    def is_live(self) -> bool:
        """Whether it may still write results: nothing that it covers may be submitted again."""
        return self.state in {State.PENDING, State.RUNNING, State.UNREACHABLE}

    @property
    def never_starts(self) -> bool:
        """Whether it waits for something that needs intervention: a failed dependency or a hold."""
        return self.state is State.PENDING and self.reason in _HOPELESS

    def __str__(self) -> str:
        """`out of memory on node1 after 12 s`, for the reason of a failure."""
        if self.state is State.GONE:
            return "SLURM no longer knows the job"
        ended = self.state not in {State.PENDING, State.RUNNING, State.UNREACHABLE}
        parts = [
            str(self.state),
            f"by signal {self.signal}" if self.signal else f"with exit code {self.exit_code}" if self.exit_code else "",
            f"on {self.node}" if self.node else "",
            f"after {self.elapsed_s} s" if ended and self.node else "",
            f"({self.reason})" if self.reason else "",
        ]
        return " ".join(part for part in parts if part)


def states(job_ids: Collection[str], name: str) -> dict[str, JobState]:
    """States of jobs.

    Args:
        job_ids: `123`, or `123_4` for an element of an array.
        name: that the jobs were submitted under. A job with a different name has an id that SLURM has assigned again.

    Returns:
        One entry for each id. While the controller is silent all are UNREACHABLE, never GONE.

    Raises:
        UserError: where there is no SLURM.
    """
    try:
        known = named(name)
    except UnreachableError as silence:
        return {job: JobState(job, State.UNREACHABLE, name, reason=str(silence)) for job in job_ids}
    missing = [job for job in job_ids if job not in known]
    told = _accounted(missing, name) if missing else {}
    # accounting believes for ever in jobs of which it has missed the end; the controller would know one that lives
    known |= {job: state for job, state in told.items() if not state.is_live}
    return {job: known.get(job, JobState(job, State.GONE, name)) for job in job_ids}


def named(name: str) -> dict[str, JobState]:
    """All jobs of this user and this name that the controller remembers, by id; elements of arrays one by one.

    Raises:
        UnreachableError: when the controller does not answer.
        UserError: where there is no SLURM.
    """
    fields = ("JobArrayID", "State", "NodeList", "TimeUsed", "StartTime", "exit_code", "Reason", "Name")
    asked = ["squeue", "--noheader", "--me", "--all", "--states=all", f"--name={name}", "--Format"]
    try:
        done = _run([*asked, ",".join(f"{field}:|" for field in fields)])
    except FileNotFoundError:
        raise UserError(
            "squeue: not found; this machine is not part of a SLURM cluster", fix="--launch local"
        ) from None
    except subprocess.TimeoutExpired:
        raise UnreachableError(f"squeue did not answer within {TIMEOUT_S:.0f} s") from None
    if done.returncode:
        raise UnreachableError(done.stderr.strip().rpartition("\n")[2] or f"squeue ended with {done.returncode}")
    return _by_id(done.stdout, name)


class UnreachableError(Exception):
    """SLURM's controller does not answer; the message is its output."""


def elements(job_id: str) -> Iterator[str]:
    """The elements that SLURM writes as one: `7_[1,4-8:2%3]` are `7_1`, `7_4`, `7_6` and `7_8`; `7` and `7_2` are themselves."""
    array, _, inside = job_id.partition("_[")
    if not inside:
        yield job_id
        return
    for part in inside.rstrip("]").partition("%")[0].split(","):
        first, last, step = re.fullmatch(r"(\d+)(?:-(\d+))?(?::(\d+))?", part).groups()  # type: ignore[union-attr]
        for index in range(int(first), int(last or first) + 1, int(step or 1)):
            yield f"{array}_{index}"


def _accounted(job_ids: Sequence[str], name: str) -> dict[str, JobState]:
    """What accounting says; nothing where there is none, or where it does not answer."""
    arrays = ",".join(sorted({job.partition("_")[0] for job in job_ids}))
    fields = "JobID,State,NodeList,Elapsed,Start,ExitCode,Reason,JobName"
    try:
        done = _run(["sacct", "--noheader", "--parsable", "--allocations", f"--format={fields}", f"--jobs={arrays}"])
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return {}
    return _by_id(done.stdout, name) if done.returncode == 0 else {}


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands without what users set for their own eyes: filters, formats, shortened arrays."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SQUEUE_", "SACCT_"))}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
        env={**kept, "SLURM_BITSTR_LEN": "0", "SLURM_TIME_FORMAT": "standard", "TZ": "UTC"},
        encoding="utf-8",
    )


def _by_id(lines: str, name: str) -> dict[str, JobState]:
    """Lines of `id|state|node|elapsed|start|exit code|reason|name|`, one for each job, or for elements that wait together."""
    found: dict[str, JobState] = {}
    for line in lines.splitlines():
        ids, state, node, elapsed, start, code, reason, job_name = line.strip().removesuffix("|").split("|", 7)
        if job_name != name:
            continue
        exit_code, signal = _ending(code)
        for job in elements(ids):
            found[job] = JobState(
                job_id=job,
                state=(what := _STATES.get(state.split()[0], State.RUNNING)),
                name=job_name,
                node="" if node == "None assigned" else node,
                elapsed_s=_seconds(elapsed),
                start=None if what is State.PENDING else _moment(start),
                reason="" if reason == "None" else reason,
                exit_code=None if what in {State.PENDING, State.RUNNING} else exit_code,
                signal=None if what in {State.PENDING, State.RUNNING} else signal,
            )
    return found


def _ending(code: str) -> tuple[int | None, int | None]:
    """Exit code and signal out of `0:9`, which `sacct` prints, or of a wait status, which `squeue` prints.

    A shell that is not killed itself ends with 128 + the signal that ended its last command.
    """
    if ":" in code:
        exit_code, signal = (int(part) for part in code.split(":"))
    elif (status := os.waitstatus_to_exitcode(int(code))) < 0:
        exit_code, signal = 0, -status
    else:
        exit_code, signal = status, 0
    if signal:
        return None, signal if signal <= 64 else None  # accounting writes 0:125 for too little memory
    return (None, exit_code - 128) if 128 < exit_code <= 128 + 64 else (exit_code, None)


def _moment(start: str) -> datetime | None:
    """`2026-01-02T03:04:05` of a command whose clock shows UTC; None for `N/A` or `Unknown`."""
    try:
        return datetime.fromisoformat(start).replace(tzinfo=UTC)
    except ValueError:
        return None


def _seconds(elapsed: str) -> int:
    """`1-02:03:04`, `02:03` or `INVALID`, for a job whose clock the controller has lost, as seconds."""
    told = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", elapsed)
    days, hours, minutes, seconds = (int(part or 0) for part in told.groups()) if told else (0, 0, 0, 0)
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


_STATES = {
    **dict.fromkeys(("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"), State.PENDING),
    "COMPLETED": State.COMPLETED,
    "FAILED": State.FAILED,
    "CANCELLED": State.CANCELLED,
    "REVOKED": State.CANCELLED,
    "TIMEOUT": State.TIMEOUT,
    "DEADLINE": State.TIMEOUT,
    "OUT_OF_MEMORY": State.OUT_OF_MEMORY,
    "NODE_FAIL": State.NODE_FAIL,
    "BOOT_FAIL": State.NODE_FAIL,
    "PREEMPTED": State.PREEMPTED,
}
"""SLURM's words; any other (COMPLETING, CONFIGURING, SUSPENDED, …) is of a job that holds a node."""

_HOPELESS = {
    "DependencyNeverSatisfied",
    "JobHeldUser",
    "JobHeldAdmin",
    "BadConstraints",
    "InvalidAccount",
    "InvalidQOS",
    "launch_failed_requeued_held",
    "job_requeued_in_held_state",
    "PartitionTimeLimit",
    "PartitionNodeLimit",
}
"""Reasons, as `squeue` writes them, for which a job waits until somebody acts."""
