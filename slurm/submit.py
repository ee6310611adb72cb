"""Submit batches to SLURM through submitit: arrays of one resource class, after those that build their needs."""

import contextlib
import io
import os
import re
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.commands import this_command
from harness.errors import Memory, UserError
from harness.files import explained
from harness.plan import estimate
from harness.plan.job import Job
from harness.plan.plan import Plan
from harness.run.jobs import Batch, waves
from slurm.entry import BatchEntry
from slurm.launch import Launch, Submission
from slurm.profile import ResourceClass, SlurmProfile
from slurm.queue import UnreachableError

TIMEOUTS = 10_000
"""Submitit counts how often a SLURM job ran out of time; `slurm.entry` decides instead, by whether it has moved."""
SILENCE = ("Unable to contact", "Socket timed out", "Connection refused", "Connection timed out", "Zero Bytes")
LIMITS = ("limit", "temporarily")
OVERRULED = {"ARRAY_INX", "ERROR", "JOB_NAME", "MEM_PER_CPU", "MEM_PER_GPU", "MEM_PER_NODE", "OPEN_MODE", "OUTPUT"}
OVERRULED |= {"SIGNAL", "TIMELIMIT", "WAIT"}
"""What a launch always sets itself, as users may set it by `SBATCH_…`, which `sbatch` prefers to what a script says."""


class BusyError(Exception):
    """SLURM accepts no further jobs now, because this user has reached a limit."""


def arrays(
    plan: Plan, profile: SlurmProfile, jobs: Mapping[str, Job], submitted: Mapping[str, int], largest: int
) -> Iterator[tuple[list[Batch], int]]:
    """Group batches into arrays, each with the number of its resource class.

    Args:
        plan: that the jobs belong to.
        profile: how many of them share a batch.
        jobs: by place.
        submitted: number of the resource class by place, needs before what needs them.
        largest: batches of an array, at most.
    """
    root, patience_s = plan.store.root.resolve(), float(profile.settle_s)

    def number_of(job: Job) -> int:
        return submitted[job.place]

    def fits(pack: Sequence[Job]) -> bool:
        return profile.resources[number_of(pack[0])].holds(estimate.together(pack))

    for wave in waves(plan, [jobs[place] for place in submitted], profile.packing, fits, number_of):
        by_class: dict[int, list[Batch]] = {}
        for batch in wave:
            fitted = replace(batch, store=root, patience_s=patience_s)
            by_class.setdefault(number_of(batch.jobs[0]), []).append(fitted)
        for number, batches in sorted(by_class.items()):
            for start in range(0, len(batches), largest):
                yield batches[start : start + largest], number


def too_large(jobs: Sequence[Job], profile: SlurmProfile) -> list[str]:
    """Notes about jobs whose estimates exceed the largest resource class."""
    largest, notes = profile.resources[-1], []
    for job in jobs:
        needed = estimate.together([job])
        if not any(each.holds(needed) for each in profile.resources):
            gpu, its_gpu = "", ""
            if largest.gpu_gb is not None:
                gpu, its_gpu = f", {needed.gpu_bytes / 2**30:.0f} GiB of a GPU", f", {largest.gpu_gb} GiB of a GPU"
            notes.append(
                f"{job.title}: about {needed.memory_bytes / 2**30:.0f} GiB{gpu} and {needed.seconds / 60:.0f} min are more "
                f"than class '{largest.name}' has ({largest.mem_gb} GiB{its_gpu}, {largest.time_min} min); it is tried there"
            )
    return notes


def submit(
    launch: Launch, batches: Sequence[Batch], resources: ResourceClass, profile: SlurmProfile, after: Collection[str]
) -> list[Submission]:
    """Submit batches as one array, or a single one as a job.

    Args:
        launch: gets a line for each before SLURM is asked, and one with its id after.
        batches: no more than an array may have.
        resources: what each of them is given.
        profile: where.
        after: ids of arrays and jobs that must have ended, well or not, before any of these begins.

    Raises:
        UnreachableError: if the controller does not answer. Whether it has taken them shows later, in the queue.
        BusyError: if it takes no more for now.
        UserError: if it refuses, with its words, or if the disk is full.
    """
    import submitit

    asked = launch.ask(resources.name, [(batch.name, [job.place for job in batch.jobs]) for batch in batches])
    executor = submitit.AutoExecutor(
        launch.submitit, cluster="slurm", slurm_max_num_timeout=TIMEOUTS, slurm_python=profile.python
    )
    told = parameters(launch.name, resources, profile, after)
    executor.update_parameters(**told)
    limit_s = 60.0 * resources.time_min
    try:
        with (
            explained(launch.path),
            contextlib.redirect_stderr(io.StringIO()),
            _outside_of_jobs(),
            _heeded(told),
            executor.batch(),
        ):
            command, larger = this_command(), _larger(resources, profile)
            jobs = [
                executor.submit(
                    BatchEntry(launch.progress(each.batch), limit_s, profile.signal_delay_s, command, larger=larger),
                    batch.renamed(each.batch),
                )
                for each, batch in zip(asked, batches, strict=True)
            ]
    except submitit.core.utils.FailedJobError as error:
        words = _words(error)
        if not words or any(word in words for word in SILENCE):
            raise UnreachableError(words or "sbatch said nothing") from None
        launch.refused([each.batch for each in asked], words)
        _clear(launch.submitit)
        if any(word in words.lower() for word in LIMITS):
            raise BusyError(words) from None
        raise UserError(f"SLURM refuses a job of class '{resources.name}': {words}", fix="fix the profile") from None
    for script in launch.submitit.glob("*_submission.sh"):
        script.chmod(0o600)  # the profile's setup may hold secrets; SLURM has a copy of its own
    launch.taken({each.batch: taken.job_id for each, taken in zip(asked, jobs, strict=True)})
    names = {each.batch for each in asked}
    return [each for each in launch.submissions if each.batch in names]


def parameters(
    name: str, resources: ResourceClass, profile: SlurmProfile, after: Collection[str] = ()
) -> dict[str, Any]:
    """Parameters of a SLURM job for submitit; None leaves the choice to the cluster."""
    return {
        "name": name,
        "timeout_min": resources.time_min,
        "mem_gb": resources.mem_gb,
        "cpus_per_task": resources.cpus_per_task,
        # since 22.05 srun does not take them from sbatch
        "slurm_srun_args": [f"--cpus-per-task={resources.cpus_per_task}"],
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
        done = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=60, check=False, encoding="utf-8"
        )
    except subprocess.TimeoutExpired:
        raise UnreachableError("scontrol did not answer") from None
    told = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    if told is None:
        raise UnreachableError(done.stderr.strip().rpartition("\n")[2] or "scontrol does not say MaxArraySize")
    return max(1, int(told[1]))


@contextlib.contextmanager
def _outside_of_jobs() -> Iterator[None]:
    """Hide the SLURM job that this process itself belongs to, if it does: jobs that it submits would inherit from it."""
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
    """Hide what the user's environment sets differently; where the profile sets nothing, it counts."""
    said = {key.removeprefix("slurm_") for key, value in told.items() if value is not None}
    said |= told["slurm_additional_parameters"].keys()
    names = {f"SBATCH_{name.replace('-', '_').upper()}" for name in said | OVERRULED}
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _larger(resources: ResourceClass, profile: SlurmProfile) -> set[Memory]:
    """Memories of which the next class, in which a job that was too large is run again, has more than this one."""
    following = profile.resources[profile.resources.index(resources) + 1 :][:1]
    found: set[Memory] = set()
    for each in following:
        if (each.gpu_gb, each.gres) != (resources.gpu_gb, resources.gres):
            found.add("GPU")
        if each.mem_gb > resources.mem_gb:
            found.add("RAM")
    return found


def _clear(folder: Path) -> None:
    """Remove what submitit wrote for jobs that were refused; the files of others have their ids in their names."""
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
