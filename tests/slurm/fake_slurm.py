"""SLURM's commands as a few lines of shell that answer from files: for what no cluster can be made to do in time."""

import os
from pathlib import Path

import pytest

SCRIPTS = {
    "squeue": "if [ -s silence ]; then cat silence >&2; exit 1; fi; cat queue",
    "sacct": "cat accounting",
    "scontrol": 'echo "Slurmctld(primary) at here is UP"; echo "MaxArraySize            = 11"',
    "srun": "exit 1",
    "scancel": """
        echo "$*" >> cancelled
        if [ -s silence ]; then cat silence >&2; exit 1; fi
        sed -i "/|${1#--name=}|$\\|^$1|/ s/|PENDING|\\||RUNNING|/|CANCELLED|/" queue
        """,
    "sbatch": """
        n=$(($(wc -l < asked) + 1)); echo "$1" >> asked
        env > environment; cp "$1" script
        if [ -s refusal ]; then cat refusal >&2; exit 1; fi
        name=$(sed -n 's/^#SBATCH --job-name=//p' "$1")
        indices=$(sed -n 's/^#SBATCH --array=//p' "$1")
        echo "$n${indices:+_[$indices]}|PENDING|None assigned|0:00|N/A|0|Priority|$name|" >> queue
        echo "Submitted batch job $n"
        """,
}


class FakeSlurm:
    """A controller that takes jobs, never begins one, and says of those in `queue` what a test writes there.

    Attributes:
        folder: `queue` and `accounting` are what squeue and sacct print; `silence` and `refusal` are what a controller or
            sbatch say in place of an answer; `asked`, `cancelled`, `environment` and `script` are what they were given.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        commands = folder / "bin"
        commands.mkdir(parents=True)
        for name, script in SCRIPTS.items():
            (commands / name).write_text(f"#!/bin/sh\ncd {folder} || exit 9\n{script}\n")
            (commands / name).chmod(0o755)
        for name in ("queue", "accounting", "silence", "refusal", "asked", "cancelled"):
            (folder / name).touch()
        monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")

    def says(self, **contents: str) -> None:
        """Write some of the files."""
        for name, content in contents.items():
            (self.folder / name).write_text(content)

    def lines(self, name: str) -> list[str]:
        """Lines of one of them."""
        return (self.folder / name).read_text().splitlines()
