"""Units to SLURM, through submitit: arrays of one resource class, after those that build what they need."""

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.files import explained
from harness.run.work import Unit
from slurm.entry import Entry
from slurm.launch import Job, Launch
from slurm.profile import ResourceClass, SlurmProfile
from slurm.queue import UnreachableError

TIMEOUTS = 10_000
"""Submitit counts how often a job ran out of time; `slurm.entry` decides instead, by whether it moved."""
SILENCE = ("Unable to contact", "Socket timed out", "Connection refused", "Connection timed out", "Zero Bytes")
LIMITS = ("limit", "temporarily")
OVERRULED = {"ARRAY_INX", "ERROR", "JOB_NAME", "MEM_PER_CPU", "MEM_PER_GPU", "MEM_PER_NODE", "OPEN_MODE", "OUTPUT"}
OVERRULED |= {"SIGNAL", "TIMELIMIT", "WAIT"}
"""What a launch always says itself, as users may say it by `SBATCH_…`, which `sbatch` heeds before what a script says."""


class BusyError(Exception):
    """SLURM takes no further jobs now, because this user has as many as are allowed."""


def submit(
    launch: Launch, units: Sequence[Unit], resources: ResourceClass, profile: SlurmProfile, after: Collection[str]
) -> list[Job]:
    """Submit units as one array, or a single one as a job.

    Args:
        launch: gets a line for each before SLURM is asked, and one with its id after.
        units: no more than an array may have.
        resources: what each of them is given.
        profile: where.
        after: ids of arrays and jobs that must have ended before any of these begins, well or not.

    Raises:
        UnreachableError: when the controller does not answer. Whether it has taken them shows later, in the queue.
        BusyError: when it takes no more for now.
        UserError: when it refuses, with its words, or when the disk is full.
    """
    import submitit

    asked = launch.ask(resources.name, [(unit.name, [task.place for task in unit.tasks]) for unit in units])
    executor = submitit.AutoExecutor(
        launch.submitit, cluster="slurm", slurm_max_num_timeout=TIMEOUTS, slurm_python=profile.python
    )
    told = parameters(launch.name, resources, profile, after)
    executor.update_parameters(**told)
    limit_s = 60.0 * resources.time_min
    entries = [Entry(job.covers, launch.progress(job.unit), limit_s, profile.signal_delay_s, sys.argv) for job in asked]
    named = [unit.of(unit.tasks, job.unit) for unit, job in zip(units, asked, strict=True)]
    try:
        with (
            explained(launch.path),
            contextlib.redirect_stderr(io.StringIO()),
            _outside_of_jobs(),
            _heeded(told),
            executor.batch(),
        ):
            jobs = [executor.submit(entry, unit) for entry, unit in zip(entries, named, strict=True)]
    except submitit.core.utils.FailedJobError as error:
        words = _words(error)
        if not words or any(word in words for word in SILENCE):
            raise UnreachableError(words or "sbatch said nothing") from None
        launch.refused([job.unit for job in asked], words)
        _clear(launch.submitit)
        if any(word in words.lower() for word in LIMITS):
            raise BusyError(words) from None
        raise UserError(f"SLURM refuses a job of class '{resources.name}': {words}", fix="mend the profile") from None
    launch.taken({job.unit: taken.job_id for job, taken in zip(asked, jobs, strict=True)})
    return [job for job in launch.jobs if job.unit in {one.unit for one in asked}]


def parameters(
    name: str, resources: ResourceClass, profile: SlurmProfile, after: Collection[str] = ()
) -> dict[str, Any]:
    """What submitit is told of a job; what is None is left to the cluster."""
    return {
        "name": name,
        "timeout_min": resources.time_min,
        "mem_gb": resources.mem_gb,
        "cpus_per_task": resources.cpus_per_task,
        "slurm_partition": profile.partition,
        "slurm_account": profile.account,
        "slurm_qos": profile.qos,
        "slurm_constraint": profile.constraint,
        "slurm_gres": resources.gres,
        "slurm_array_parallelism": profile.array_parallelism,
        "slurm_signal_delay_s": profile.signal_delay_s,
        "slurm_setup": profile.setup or None,
        "slurm_additional_parameters": {key: said for key, said in profile.additional.items() if said is not False},
        "slurm_dependency": f"afterany:{':'.join(sorted(after))}" if after else None,
    }


def array_size(profile: SlurmProfile) -> int:
    """How many jobs an array may have: as the profile says, else the controller.

    Raises:
        UnreachableError: when it does not answer.
    """
    if profile.max_array_size is not None:
        return profile.max_array_size
    try:
        done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise UnreachableError("scontrol did not answer") from None
    told = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    if told is None:
        raise UnreachableError(done.stderr.strip().rpartition("\n")[2] or "scontrol does not say MaxArraySize")
    return max(1, int(told[1]))


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the job that this process itself belongs to, if it does: jobs that it submits would take after it."""
    from submitit.core.utils import environment_variables
    from submitit.helpers import clean_env

    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    kept = {name: os.environ[name] for name in ("SLURM_CONF",) if name in os.environ}
    with clean_env(), environment_variables(**kept):
        yield


@contextlib.contextmanager
def _heeded(told: Mapping[str, Any]) -> Iterator[None]:
    """Hide what the user's environment says otherwise; where the profile says nothing, it may."""
    said = {key.removeprefix("slurm_") for key, value in told.items() if value is not None}
    said |= told["slurm_additional_parameters"].keys()
    names = {f"SBATCH_{name.replace('-', '_').upper()}" for name in said | OVERRULED}
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _clear(folder: Path) -> None:
    """Take away what submitit wrote for jobs that were refused; the files of others have their ids in their names."""
    pickles = (file for file in folder.glob("*.pkl") if "_" not in file.name)
    scripts = (file for file in folder.glob(".submission_file_*.sh") if not file.is_symlink())
    for file in (*pickles, *scripts):
        file.unlink(missing_ok=True)


def _words(error: Exception) -> str:
    """What sbatch said, as one line."""
    told = [line.strip() for line in str(error).splitlines() if "error:" in line]
    return (
        (told[-1] if told else str(error).strip().replace("\n", " ")).removeprefix("sbatch: ").removeprefix("error: ")
    )
