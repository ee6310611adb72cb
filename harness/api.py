"""The contract between the harness and what plugs into it: methods, edited models, artifacts, backends and launchers.

A method module declares its spec, hyper-parameters and artifacts without importing torch, so that a sweep can be planned on
a login node in a fraction of a second; it imports torch where it computes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias

from pydantic import BaseModel, ConfigDict

from harness.identity import digest
from harness.records import DataRef, Dataset, EditRequest
from harness.registry import MethodSpec
from harness.tokens import Query

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel
    from harness.plan.plan import Plan
    from harness.run.progress import Display
    from harness.store.store import Store

State: TypeAlias = Mapping[str, "Tensor"]
"""What an edit keeps next to the weights, by names of the method's choice; a safetensors file can hold it."""

Phase = Literal["setup", "edit", "attach", "evaluate"]
"""Parts of a cell's time; docs/timing.md says what belongs to each."""


class Hparams(BaseModel):
    """Base of every method's hyper-parameters: no unknown key, no change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class ArtifactSpec:
    """Something costly that an edit needs or that several cells share: built once and stored by its content address.

    Attributes:
        name: what it is, `plugin-edit`, `tiny-model`; the folder it is stored in.
        kind: `model` (a stand-in for a pretrained model, never charged), `setup` (before any edit, such as statistics) or
            `edit` (the edit itself, shared by several target models).
        identity: everything that decides its content, JSON-like; paths and devices are not part of it.
        builder: `module:function`, called as `function(spec, context, folder)` to write the files.
        inputs: what the builder needs in addition to the identity (references to datasets and models).
        needs: artifacts that must be built first, by role.
    """

    name: str
    kind: Literal["model", "setup", "edit"]
    identity: Mapping[str, Any]
    builder: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, "ArtifactSpec"] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Content address: hash of name, identity and the keys of all needs."""
        needs = {role: need.key for role, need in self.needs.items()}
        return digest({"name": self.name, "identity": self.identity, "needs": needs}, 16)

    def closure(self) -> Iterator["ArtifactSpec"]:
        """Everything it needs, needs first, and then the artifact itself; shared needs are repeated."""
        for need in self.needs.values():
            yield from need.closure()
        yield self

    def description(self) -> dict[str, Any]:
        """The content of artifact.json."""
        needs = {role: need.key for role, need in self.needs.items()}
        return {"name": self.name, "kind": self.kind, "key": self.key, "identity": self.identity, "needs": needs}


class Clock(Protocol):
    """Device-synchronised timing of the phases of a cell (see docs/timing.md)."""

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Count the time spent inside towards `name`; phases do not nest."""
        ...


class Advance(Protocol):
    """Moves a progress bar."""

    def __call__(self, steps: int = 1) -> None:
        """Count this many steps as done."""
        ...


class Context(Protocol):
    """What the runner provides to a method or an artifact builder."""

    @property
    def device(self) -> str:
        """Where models are, `cpu` or `cuda`."""
        ...

    @property
    def seed(self) -> int:
        """The cell's seed; all randomness follows from it."""
        ...

    @property
    def clock(self) -> Clock:
        """The clock of this cell or artifact."""
        ...

    def load_model(self, ref: "ModelRef") -> "LoadedModel":
        """The unedited model; kept in memory between cells that use it."""
        ...

    def load_data(self, ref: DataRef) -> Dataset:
        """The records of a reference, verified against its hash."""
        ...

    def artifact(self, spec: ArtifactSpec) -> Path:
        """The finished folder of an artifact."""
        ...

    def progress(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """A progress bar; call the value with the number of steps done."""
        ...


class EditedModel(ABC):
    """A model after editing, whatever was done to it: new weights, a routed memory, an ensemble.

    All calls take a batch. `revert` is always called, also after an exception.
    """

    @abstractmethod
    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """Arg-max id at each target position, with the target itself as context; one list per query."""

    @abstractmethod
    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """Greedy continuation of each prompt by exactly as many ids as its target has."""

    def scope(self, queries: Sequence[Query]) -> list[float] | None:
        """Routing score of each prompt in [0, 1], 1 if it is treated as one of the edits; None if the method has none."""
        return None

    def diagnostics(self) -> Mapping[str, float]:
        """Further numbers about the edit, written next to the metrics."""
        return {}

    def state(self) -> State:
        """Everything kept next to the weights, from which `Method.extend` rebuilds the same model bit for bit."""
        return {}

    def revert(self) -> None:
        """Restore the model that was given to `edit`, bit for bit."""
        return


class Method(ABC):
    """An editing method with its hyper-parameters. `harness.registry.register` adds a subclass to what suites can name.

    Class attributes:
        spec: set by `register`.
        Hparams: class of the hyper-parameters.
        preset: hyper-parameter values that replace those of the method's files; a variant or a suite may still differ.
        differences: known differences from another implementation of the same method, one sentence each; the parity
            table prints them.
        memory_copies: how many copies of the target model a cell holds, for estimates.
    """

    spec: ClassVar[MethodSpec]
    Hparams: ClassVar[type[Hparams]] = Hparams
    preset: ClassVar[Mapping[str, Any]] = {}
    differences: ClassVar[tuple[str, ...]] = ()
    memory_copies: ClassVar[int] = 1

    def __init__(self, hparams: Any) -> None:
        self.hparams = hparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """What must be built before `edit`, by role. Pure: imports no torch and reads no file.

        Raises:
            UserError: if the combination cannot be run here, with the reason.
        """
        return {}

    @abstractmethod
    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Apply all requests to an unedited model and time the phases through `context.clock`.

        Args:
            model: unedited; changes are undone by the result's `revert`.
            requests: the facts to write.
            artifacts: finished folders by role, as `artifacts` named them.
            context: device, seed, clock and progress of this cell.
        """

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Apply further requests on top of earlier ones; by default `edit` on the model as it is.

        A method that keeps state next to the weights overrides this. One that does not needs nothing else to edit in
        sequence: only the first edit's `revert` is called at the end, so it must restore whatever later edits may change.

        Args:
            model: with the weights that earlier edits left; unedited for a memory.
            state: what the last edit's `EditedModel.state` returned, on the model's device. Must not be changed in place.
            requests: the further requests; with none at all, the model is what it was when `state` was taken.
            artifacts, context: as for `edit`. The seed is the same for every call: a method that draws random numbers keeps
                its position in `state`.
        """
        return self.edit(model, requests, artifacts, context)

    def code_identity(self) -> Mapping[str, str]:
        """What distinguishes foreign code from any other version of it; part of the cell's identity."""
        return {}

    def provenance(self) -> Mapping[str, Any]:
        """What the cell's provenance says about foreign code."""
        return {}

    @classmethod
    def edits_in_sequence(cls) -> bool:
        """Whether the method can continue from its own edits: those in weights can, others if they override `extend`."""
        return cls.spec.is_in_weights or cls.extend is not Method.extend


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `harness doctor` looked for."""

    what: str
    is_present: bool
    detail: str


class Backend(ABC):
    """Another code base whose implementations of methods stand next to the native ones under the same names.

    Attributes:
        commands: `module:app` of a typer application with commands of its own, or empty.
    """

    commands: ClassVar[str] = ""

    @abstractmethod
    def is_available(self) -> bool:
        """Whether its code can run here."""

    def findings(self) -> Iterator[Finding]:
        """What `harness doctor` says about it."""
        yield from ()


@dataclass(frozen=True, slots=True)
class Summary:
    """How the cells of a run ended, by the names of their folders.

    Attributes:
        finished: cells that this run finished.
        failed: cells that it was to run and that have no result, each with the reason.
        kept: cells of the plan that were done before.
    """

    finished: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    kept: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One cell or artifact as a user sees it.

    Attributes:
        place: its folder below the store, `cells/…`; empty for a combination that cannot be a cell here.
        title: method, model and dataset.
        state: `running`, `pending`, `to do`, `done`, `failed` or `cannot run`.
        age_s: how long it has been in that state; None if unknown.
        node, job: where it runs, and the scheduler's id of it.
        launch: name of the launch that has it.
        progress: how far it is, for people.
        note: why it failed, waits or cannot run.
        log: file that says more about a failure.
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
        """Whether a launcher may still write its result: nobody else may run or forget it."""
        return self.state in ("running", "pending")


@dataclass(frozen=True, slots=True)
class LaunchState:
    """What a launcher knows about its unfinished launches of a store.

    Attributes:
        launches: their names.
        jobs: by place, what was submitted, as the last job that has it tells; the store says which of them are settled.
        silence: a sentence about a scheduler that does not answer, or empty. Its jobs may well be running.
    """

    launches: tuple[str, ...] = ()
    jobs: Mapping[str, JobStatus] = field(default_factory=dict)
    silence: str = ""


class Launcher(ABC):
    """Runs the jobs of a plan somewhere. `harness.registry.register_launcher` adds a subclass under a name.

    A launch profile is a YAML file whose key `launcher` is that name; `Profile` checks the rest. Profiles that come with a
    launcher are in the folder `profiles` next to its module.

    `run` is all that a launcher must define. One whose jobs outlive the process that submitted them also defines the class
    methods, which find these jobs in the store again, whatever profile they were launched with and on whichever machine.

    Class attributes:
        Profile: pydantic model of the launch profiles that name this launcher, a `harness.run.profiles.LaunchProfile`.
    """

    Profile: ClassVar[type[BaseModel]]

    def __init__(self, profile: Any) -> None:
        self.profile = profile

    def obstacle(self) -> str:
        """Why nothing can be launched from this machine, as in `needs SLURM, which …`; empty if it can."""
        return ""

    def device(self, wanted: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"] | None:
        """Where cells compute, if the profile decides that and not this machine.

        Args:
            wanted: what the suite says.
        """
        return None

    def describe(self, plan: "Plan") -> list[str]:
        """Sentences about how the plan would be launched, for `harness plan`."""
        return []

    @abstractmethod
    def run(self, plan: "Plan", display: "Display", *, detach: bool = False) -> Summary | None:
        """Run everything the plan has to do (`harness.plan.job.jobs`); a failure stops nothing but what needs it.

        Jobs of its own earlier launches that wait or run are waited for, not run again.

        Args:
            plan: of a store that no other process of this machine writes to.
            display: gets every event.
            detach: return once everything is submitted, if the launcher can.

        Returns:
            What became of the cells; None if the run continues without this process.

        Raises:
            UserError: for what ends the whole run and can be fixed by the user.
        """

    @classmethod
    def state(cls, store: "Store") -> LaunchState:
        """What its unfinished launches of a store are doing; changes nothing."""
        return LaunchState()

    @classmethod
    def cancel(cls, store: "Store", suite: str, scale: str) -> Iterator[str]:
        """End the unfinished launches of a suite, and yield the name of each once none of its jobs can write any more.

        Finished cells stay, unfinished ones are to do.

        Raises:
            UserError: if the scheduler cannot be told, or if a job does not end.
        """
        yield from ()

    @classmethod
    def forget(cls, store: "Store", places: Sequence[str]) -> None:
        """Make jobs count as never run, whatever became of them."""
        return

    @classmethod
    def logs(cls, store: "Store") -> Mapping[str, Sequence[Path]]:
        """The files in which the last job of each place of its unfinished launches prints; they exist once it begins."""
        return {}
