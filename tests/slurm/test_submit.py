"""What sbatch is told, and what is made of what it says."""

import errno
import os
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission

from harness.errors import UserError
from harness.run.jobs import Batch
from harness.store.store import Store
from slurm import submit as submitting
from slurm.launch import Launch
from slurm.profile import SlurmProfile
from slurm.queue import UnreachableError
from slurm.submit import BusyError, parameters, submit
from tests.helpers.fake_jobs import fake_job

PROFILE = SlurmProfile(launcher="slurm", mem_gb=4, time_min=60, partition="gpu", additional={"exclude": "node[1-3]"})


@pytest.fixture
def launch(tmp_path):
    return Launch.create(Store(tmp_path / "store"), "small", "mini", {})


def asked(launch, count=2, profile=PROFILE):
    batches = [Batch(f"{n}", launch.path, (fake_job(f"{n}"),), "cpu", 1) for n in range(count)]
    return submit(launch, batches, profile.resources[0], profile, after=())


def test_jobs_have_ids_and_files_of_their_own(launch, slurm):
    assert [job.id for job in asked(launch)] == ["1_0", "1_1"]
    assert {file.name for file in launch.submitit.glob("*.pkl")} == {"1_0_submitted.pkl", "1_1_submitted.pkl"}
    assert [job.id for job in asked(launch, 1)] == ["2"]


def test_what_the_environment_says_otherwise_is_hidden_from_sbatch_and_comes_back(launch, slurm, monkeypatch):
    """`sbatch` heeds it before the script; under another name a launch would take its own jobs for lost."""
    mine = {"JOB_NAME": "mine", "PARTITION": "debug", "TIMELIMIT": "1", "EXCLUDE": "node9", "ACCOUNT": "lab"}
    for name, value in mine.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    asked(launch)
    assert {line for line in slurm.lines("environment") if line.startswith("SBATCH_")} == {"SBATCH_ACCOUNT=lab"}
    assert {name: os.environ[f"SBATCH_{name}"] for name in mine} == mine


def test_srun_is_given_the_cpus_too(launch, slurm):
    """Since SLURM 22.05 it does not take them from sbatch, and a job of eight CPUs would run on one."""
    asked(launch, profile=PROFILE.model_copy(update={"cpus_per_task": 8}))
    script = slurm.lines("script")
    assert "#SBATCH --cpus-per-task=8" in script
    assert all("--cpus-per-task=8" in line for line in script if line.startswith("srun "))
    assert any(line.startswith("srun ") for line in script)


@pytest.mark.parametrize(
    ("changed", "larger"),
    [({"gpu_gb": 80}, {"GPU"}), ({"gres": "gpu:h100:1"}, {"GPU"}), ({"mem_gb": 8}, {"RAM"}), ({"time_min": 90}, set())],
)
def test_a_job_that_runs_out_of_a_memory_has_failed_unless_the_next_class_has_more_of_it(
    launch, slurm, changed, larger
):
    small = {"name": "small", "mem_gb": 4, "time_min": 60, "gpu_gb": 40}
    profile = SlurmProfile(launcher="slurm", classes=[small, {**small, "name": "large", **changed}])
    entries = []
    for resources in profile.resources:
        [job] = submit(launch, [Batch("1", launch.path, (fake_job("1"),), "cpu", 1)], resources, profile, after=())
        entries.append(DelayedSubmission.load(launch.submitit / f"{job.id}_submitted.pkl").function)
    assert [entry.larger for entry in entries] == [larger, set()]


def test_a_parameter_that_is_false_is_none():
    profile = PROFILE.model_copy(update={"additional": {"exclusive": False, "requeue": True, "nice": 0}})
    told = parameters("name", profile.resources[0], profile)["slurm_additional_parameters"]
    assert told == {"requeue": True, "nice": 0}


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size)", BusyError),
        ("Batch job submission failed: Resource temporarily unavailable", BusyError),
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", UnreachableError),
        ("Batch job submission failed: Invalid account or account/partition combination specified", UserError),
    ],
)
def test_a_refusal_is_told_from_a_limit_and_from_silence(launch, slurm, said, error):
    slurm.says(refusal=f"sbatch: error: {said}\n")
    with pytest.raises(error, match=r"Batch job submission failed|refuses a job of class 'only'"):
        asked(launch)
    known = Launch(launch.path).submissions
    assert [job.id for job in known] == (["", ""] if error is UnreachableError else []), "it may have taken them"


def test_an_sbatch_that_ends_without_a_word_may_have_been_heard(launch, slurm):
    (slurm.folder / "bin" / "sbatch").write_text("#!/bin/sh\nkill -KILL $$\n")
    with pytest.raises(UnreachableError, match="sbatch said nothing"):
        asked(launch)
    assert len(launch.submissions) == 2


def test_a_full_disk_is_no_refusal(launch, slurm, monkeypatch):
    """SLURM has the jobs already when submitit gives their files their names."""

    def full(self, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(UserError, match="No space left on device → free some space"):
        asked(launch)
    assert [job.id for job in Launch(launch.path).submissions] == ["", ""]
    assert len(slurm.lines("queue")) == 1


def test_the_size_of_arrays_is_the_controllers_or_the_profiles(slurm):
    assert submitting.array_size(PROFILE) == 11
    assert submitting.array_size(PROFILE.model_copy(update={"max_array_size": 3})) == 3


def test_a_secret_in_a_setup_line_is_in_no_file_that_others_can_read(launch, slurm):
    asked(launch, profile=PROFILE.model_copy(update={"setup": ["export HF_TOKEN=hf_secret"]}))
    holding = [file for file in launch.path.rglob("*") if file.is_file() and b"hf_secret" in file.read_bytes()]
    assert holding, "SLURM is given it"
    assert all(file.stat().st_mode & 0o077 == 0 for file in holding)
