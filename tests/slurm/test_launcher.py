"""Whether a cluster can be used: the controller is asked, and not for long."""

import pytest

from harness.run.profiles import load_profile
from slurm import launcher as slurm_launcher
from tests.helpers.commands import harness_here

ANSWERS = {
    "echo 'Slurmctld(primary) at here is UP'": "",
    "echo 'Slurmctld(primary) at here is DOWN'; echo 'Slurmctld(backup) at there is UP'": "",
    "echo 'Slurmctld(primary) at here is DOWN'; exit 1": "SLURM is installed, but its controller does not answer",
    "exec sleep 60": "SLURM is installed, but its controller does not answer",
}


@pytest.mark.parametrize(("answer", "silence"), ANSWERS.items(), ids=["up", "backup", "down", "hanging"])
def test_a_cluster_can_be_used_if_one_of_its_controllers_is_up(slurm, monkeypatch, answer, silence):
    monkeypatch.setattr(slurm_launcher, "PING_TIMEOUT_S", 0.5)
    (slurm.folder / "bin" / "scontrol").write_text(f"#!/bin/sh\n{answer}\n")
    a100 = load_profile("a100")
    assert (a100.obstacle(), a100.silence()) == ("", silence)
    profiles = harness_here("list", "profiles").stdout
    (line,) = [line for line in profiles.splitlines() if line.startswith("a100")]
    assert line.rstrip().endswith(silence or "yes")
