"""Launchers, which run the jobs of a plan, and what they report about them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel

if TYPE_CHECKING:
    from harness.plan.plan import Plan
    from harness.run.progress import Display
    from harness.store.store import Store
    from harness.suite import Suite


@dataclass(frozen=True, slots=True)
class Summary:
    """Outcome of a run, by the folder names of its cells.

    Attributes:
        finished: cells that this run completed.
        failed: cells that this run could not complete, each with the reason.
        kept: cells of the plan that were already done.
    """

    finished: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    kept: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JobStatus:
    """Status of one cell or artifact.

    Attributes:
        place: folder relative to the store, such as `cells/…`; empty for a combination that cannot run here.
        title: method, model and dataset.
        state: `running`, `pending`, `to do`, `done`, `failed` or `cannot run`.
        age_s: time in this state; None if unknown.
        node, job: host name and the scheduler's job id.
        launch: name of the launch that it belongs to.
        progress: human-readable progress.
        note: reason why it failed, is pending or cannot run.
        log: log file of a failure.
    """

    place: str
    title: str
    state: str
    age_s: float | None = None
    node: str = ""
    job: str = ""
    launch: str = ""
    progress: str = ""
    note: str = ""
    log: str = ""

    @property
    def is_live(self) -> bool:
        """Whether a launcher may still write the result, so that no other process may run or discard it."""
        return self.state in ("running", "pending")


@dataclass(frozen=True, slots=True)
class LaunchState:
    """State of a launcher's unfinished launches for a store.

    Attributes:
        launches: names of the launches.
        jobs: status of everything submitted, by place, from the most recent job; the store knows which are settled.
        silence: message if the scheduler does not respond, otherwise empty. Jobs may still be running then.
    """

    launches: tuple[str, ...] = ()
    jobs: Mapping[str, JobStatus] = field(default_factory=dict)
    silence: str = ""


class Launcher(ABC):
    """Runs the jobs of a plan. Register subclasses with `harness.registry.register_launcher`.

    A launch profile is a YAML file whose key `launcher` names the launcher; `Profile` validates the rest. A launcher ships its
    profiles in the folder `profiles` next to its module.

    A launcher must implement only `run`. If its jobs outlive the submitting process, it also implements the class methods,
    which recover these jobs from the store, independent of the profile and the machine that they were launched from.

    Class attributes:
        Profile: pydantic model of this launcher's profiles, a `harness.run.profiles.LaunchProfile`.
    """

    Profile: ClassVar[type[BaseModel]]

    def __init__(self, profile: Any) -> None:
        self.profile = profile

    def obstacle(self) -> str:
        """Why this machine cannot launch jobs, as in `needs SLURM, which …`; empty if it can."""
        return ""

    def silence(self) -> str:
        """The service that this launcher depends on and that does not respond at the moment; empty if everything responds.

        Unlike an obstacle it may pass, so it stops no run: `harness doctor` reports it. Must return within seconds.
        """
        return ""

    def device(self, wanted: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"] | None:
        """Device of the cells if the profile determines it; None to use this machine's.

        Args:
            wanted: the suite's setting.
        """
        return None

    def memory(self, device: str) -> int | None:
        """Memory in bytes of the cells' device if the profile determines it: the minimum that a cell may be given."""
        return None

    def describe(self, plan: "Plan") -> list[str]:
        """Describe how the plan would be launched, one sentence per item, for `harness plan`."""
        return []

    @abstractmethod
    def run(self, plan: "Plan", display: "Display", *, detach: bool = False) -> Summary | None:
        """Run all unfinished jobs of the plan (`harness.plan.job.jobs`); a failure only stops jobs that depend on it.

        Pending and running jobs of this launcher's earlier launches are waited for, not run again.

        Args:
            plan: the plan; its store is locked by this process.
            display: receives every event.
            detach: return once everything is submitted, if the launcher supports it.

        Returns:
            The outcome of the cells; None if the run continues without this process.

        Raises:
            UserError: for an error that stops the whole run and that the user can fix.
        """

    @classmethod
    def state(cls, store: "Store") -> LaunchState:
        """Query the state of this launcher's unfinished launches for a store; read-only."""
        return LaunchState()

    @classmethod
    def cancel(cls, store: "Store", suite: "Suite") -> Iterator[str]:
        """Cancel the unfinished launches of a suite, and yield each name once none of its jobs can write any more.

        Those with the suite's scale and options; with `--only`, those with the same filters. Finished cells are kept;
        unfinished ones return to `to do`.

        Raises:
            UserError: if the scheduler cannot be reached, or if a job does not end.
        """
        yield from ()

    @classmethod
    def forget(cls, store: "Store", places: Sequence[str]) -> None:
        """Discard all records of jobs, so that they count as never run."""
        return

    @classmethod
    def logs(cls, store: "Store") -> Mapping[str, Sequence[Path]]:
        """Output files of the latest job of each place in unfinished launches; they exist once the job starts."""
        return {}
