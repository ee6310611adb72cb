"""The SLURM launcher: what the rest of the harness sees of this package."""

import contextlib
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from harness.api import Launcher, LaunchState, Summary
from harness.errors import UserError
from harness.plan.job import jobs
from harness.plan.plan import Plan
from harness.registry import register_launcher
from harness.run.progress import Display
from harness.store.store import Store
from harness.suite import Suite
from slurm.driver import drive
from slurm.launch import Launch, launches
from slurm.profile import SlurmProfile
from slurm.queue import UnreachableError, named
from slurm.retry import first_class
from slurm.state import cancel, launch_state
from slurm.submit import too_large

PING_TIMEOUT_S = 10
"""Patience for a controller; a command of SLURM waits for minutes by itself."""
LAST_WORDS_S = 180
"""Between a SLURM job's cancellation and its end; KillWait of most sites is 30 s."""


@register_launcher("slurm")
class SlurmLauncher(Launcher):
    """Runs jobs as arrays on a SLURM cluster, submitted with submitit and followed by a driver that may be restarted."""

    Profile: ClassVar[type[SlurmProfile]] = SlurmProfile
    profile: SlurmProfile

    def obstacle(self) -> str:
        """As `Launcher.obstacle`. A controller that is temporarily unreachable is not an obstacle."""
        if shutil.which("sbatch") is None:
            return "needs SLURM, which this machine does not have"
        told = _ping()
        is_set_up = told is None or "Slurmctld" in told
        return "" if is_set_up else "needs SLURM, which is not set up on this machine"

    def silence(self) -> str:
        """As `Launcher.silence`: whether the controller, or its backup, is up."""
        return "" if " UP" in (_ping() or "") else "SLURM is installed, but its controller does not answer"

    def device(self, wanted: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
        """As the suite says, else a GPU if this profile requests one."""
        return self.profile.device(wanted)

    def memory(self, device: str) -> int | None:
        """Of the smallest resource class."""
        smallest = self.profile.resources[0]
        gibibytes = smallest.gpu_gb if device == "cuda" else smallest.mem_gb
        return gibibytes and gibibytes * 2**30

    def describe(self, plan: Plan) -> list[str]:
        """Describe how many jobs each resource class gets, and which jobs are too large for all of them."""
        classes, todo = self.profile.resources, jobs(plan)
        counts = Counter(first_class(job, classes) for job in todo)
        shares = ", ".join(f"{count} in class '{classes[number].name}'" for number, count in sorted(counts.items()))
        return [f"jobs on SLURM: {shares or 'none'}", *too_large(todo, self.profile)[:1]]

    def run(self, plan: Plan, display: Display, *, detach: bool = False) -> Summary | None:
        """As `Launcher.run`."""
        return drive(plan, self.profile, display, detach=detach)

    @classmethod
    def state(cls, store: Store) -> LaunchState:
        """As `Launcher.state`."""
        return launch_state(store)

    @classmethod
    def cancel(cls, store: Store, suite: Suite) -> Iterator[str]:
        """As `Launcher.cancel`."""
        for launch in launches(store):
            if launch.belongs_to(suite):
                launch.close("cancelled")  # its driver is to see this before it sees jobs end
                if complaint := cancel(f"--name={launch.name}"):
                    launch.reopen()
                    raise UserError(
                        f"{launch.name}: scancel: {complaint}", fix="try again where and when SLURM answers"
                    )
                _wait_for_end(launch)
                yield launch.name

    @classmethod
    def forget(cls, store: Store, places: Sequence[str]) -> None:
        """As `Launcher.forget`."""
        for launch in launches(store):
            launch.again(places)

    @classmethod
    def logs(cls, store: Store) -> Mapping[str, Sequence[Path]]:
        """As `Launcher.logs`."""
        return {
            place: launch.logs(submission)
            for launch in launches(store)
            for submission in launch.submissions
            for place in submission.covers
        }


def _ping() -> str | None:
    """What `scontrol ping` prints: a line for each controller, `Slurmctld(primary) at host is UP`; None if it hangs."""
    try:
        command = ["scontrol", "ping"]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, encoding="utf-8", timeout=PING_TIMEOUT_S
        ).stdout
    except subprocess.TimeoutExpired:
        return None
    except OSError:  # sbatch without scontrol
        return ""


def _wait_for_end(launch: Launch) -> None:
    """Wait until no job of a launch can write any more: SLURM gives each some seconds to end by itself.

    Raises:
        UserError: if that takes longer than it should.
    """
    for _ in range(LAST_WORDS_S):
        with contextlib.suppress(UnreachableError):
            if not any(job.is_live for job in named(launch.name).values()):
                return
        time.sleep(1)
    raise UserError(f"{launch.name}: jobs were cancelled and still run", fix=f"squeue --me --name={launch.name}")
