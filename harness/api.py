"""Interfaces for extending the harness: methods, edited models, artifacts, backends and launchers.

A method module declares its spec, hyper-parameters and artifacts without importing torch, so that planning a sweep on a
login node takes a fraction of a second. It imports torch inside the functions that compute.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self, TypeAlias

from pydantic import BaseModel, ConfigDict

from harness.code import source_hash
from harness.errors import UserError
from harness.identity import digest
from harness.memory import PROMPT_TOKENS, Memory
from harness.records import DataRef, Dataset, EditRequest
from harness.registry import MethodSpec
from harness.tokens import Query

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema
    from torch import Tensor

    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel
    from harness.plan.plan import Plan
    from harness.run.progress import Display
    from harness.store.store import Store

State: TypeAlias = Mapping[str, "Tensor"]
"""State that an edit keeps in addition to the weights, under names chosen by the method; saved as safetensors."""

TOKENS_PER_PASS = PROMPT_TOKENS
"""Length of the prompt in which estimates of time count passes through a model."""

Phase = Literal["setup", "edit", "attach", "evaluate"]
"""Timed phases of a cell; docs/timing.md defines what each includes."""


class Choice(BaseModel, ABC):
    """In place of a hyper-parameter's value: an artifact that decides it when the cell runs.

    Identities contain the artifact's key, not the resulting value. A field of `Hparams` accepts one kind of choice if
    its type is annotated with `OrChoice`; `Hparams.decided` replaces it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @abstractmethod
    def artifact(self, target: "ModelRef", data: DataRef, seed: int) -> "ArtifactSpec":
        """The artifact. Must not import torch or read files.

        Raises:
            UserError: if it cannot be built here, with the reason.
        """

    @abstractmethod
    def value(self, folder: Path) -> Any:
        """The value, JSON-like, according to the finished artifact in `folder`."""

    @classmethod
    @abstractmethod
    def is_written(cls, value: Any) -> bool:
        """Whether a suite or a file of hyper-parameters asks for a choice here, with valid options or not."""

    @classmethod
    @abstractmethod
    def read(cls, written: Any) -> Self:
        """The choice that is asked for.

        Raises:
            ValueError: for invalid options.
        """

    @abstractmethod
    def written(self) -> Any:
        """JSON-like form that `read` understands."""


@dataclass(frozen=True)
class OrChoice:
    """Annotation of a field of `Hparams`: instead of a value it may hold a choice, until that is decided.

    The field keeps the type of its value, because methods edit with decided values only.
    """

    choice: type[Choice]

    def __get_pydantic_core_schema__(self, source: Any, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema

        value = handler(source)
        return core_schema.tagged_union_schema(
            {"value": value, "choice": core_schema.no_info_plain_validator_function(self._read)},
            discriminator=lambda found: "choice" if self._is_choice(found) else "value",
            serialization=core_schema.wrap_serializer_function_ser_schema(
                lambda found, plain: found.written() if isinstance(found, Choice) else plain(found), schema=value
            ),
        )

    def _is_choice(self, found: Any) -> bool:
        return isinstance(found, Choice) or self.choice.is_written(found)

    def _read(self, found: Any) -> Choice:
        return found if isinstance(found, Choice) else self.choice.read(found)


class Hparams(BaseModel):
    """Base class of hyper-parameters: immutable, and unknown keys are errors.

    A method that overrides what follows gets better estimates of time; nothing else depends on it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def passes_per_edit(self) -> float:
        """Forward passes of a prompt through the target model per edit; a forward and a backward pass count as three."""
        return 75.0

    @property
    def steps_per_edit(self) -> float:
        """Successive optimiser steps per edit that no other edit shares; each costs at least the start of its kernels."""
        return 0.0

    def share_of_blocks(self, n_layers: int) -> float:
        """Share of the blocks that these passes run: less than 1 where those below an edited matrix run only once."""
        return 1.0

    def identity(self) -> dict[str, Any]:
        """Values that decide a result, JSON-like: all of them, unless a subclass leaves out where files are."""
        return self.model_dump(mode="json")

    def choices(self) -> dict[str, Choice]:
        """The values that are not decided yet, by field."""
        return {name: value for name in type(self).model_fields if isinstance(value := getattr(self, name), Choice)}

    def decided(self, artifacts: Mapping[str, Path]) -> tuple[Self, dict[str, Any]]:
        """These hyper-parameters with every choice decided, and the values that were chosen.

        Args:
            artifacts: folders of the finished artifacts, by field.
        """
        values = {name: choice.value(artifacts[name]) for name, choice in self.choices().items()}
        return (self.model_validate({**self.model_dump(), **values}) if values else self), values


@dataclass(frozen=True)
class ArtifactSpec:
    """A costly prerequisite of an edit, or one shared by several cells; built once and stored under its content address.

    Attributes:
        name: type of the artifact, such as `plugin-edit` or `tiny-model`; also the folder it is stored in.
        kind: `model` (a stand-in for a pretrained model, whose cost is never charged), `setup` (preparation before any
            edit, such as statistics) or `edit` (the edit itself, shared by several target models).
        identity: everything that determines the content, JSON-like, without paths and devices.
        builder: `module:function`, called as `function(spec, context, folder)` to write the files.
        inputs: further inputs of the builder that are not part of the identity (references to datasets and models).
        needs: dependencies by role, built first.
        passes: forward passes of a prompt through the models in `inputs` that building takes (a forward and a backward
            pass count as three), for estimates of time only; None if unknown.
        flops: floating-point operations beyond these passes; for estimates only.
        memory: estimated bytes that building takes in addition to the models in `inputs`, by what takes them; for estimates
            only.
    """

    name: str
    kind: Literal["model", "setup", "edit"]
    identity: Mapping[str, Any]
    builder: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    needs: Mapping[str, "ArtifactSpec"] = field(default_factory=dict)
    passes: float | None = None
    flops: float = 0.0
    memory: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Content address: hash of `content` and the keys of all dependencies."""
        needs = {role: need.key for role, need in self.needs.items()}
        return digest({**self.content, "needs": needs}, 16)

    @cached_property
    def content(self) -> dict[str, Any]:
        """The name, the identity and, if the builder is from outside this project, the hash of its code."""
        code = source_hash(self.builder.partition(":")[0])
        return {"name": self.name, "identity": self.identity, **({"code": code} if code else {})}

    def closure(self) -> Iterator["ArtifactSpec"]:
        """Yield all dependencies and then the artifact itself, in build order; shared dependencies are repeated."""
        for need in self.needs.values():
            yield from need.closure()
        yield self

    def description(self) -> dict[str, Any]:
        """Content of artifact.json."""
        needs = {role: need.key for role, need in self.needs.items()}
        return {**self.content, "kind": self.kind, "key": self.key, "needs": needs}


class Clock(Protocol):
    """Device-synchronised timing of the phases of a cell (see docs/timing.md)."""

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Attribute the time spent in the block to `name`; phases do not nest."""
        ...


class Advance(Protocol):
    """Callback that advances a progress bar."""

    def __call__(self, steps: int = 1) -> None:
        """Advance by a number of steps."""
        ...


class Context(Protocol):
    """Services that the runner provides to a method or an artifact builder."""

    @property
    def device(self) -> str:
        """Device of the models, `cpu` or `cuda`."""
        ...

    @property
    def seed(self) -> int:
        """The cell's seed, from which all randomness is derived."""
        ...

    @property
    def clock(self) -> Clock:
        """The clock of this cell or artifact."""
        ...

    def load_model(self, ref: "ModelRef") -> "LoadedModel":
        """Load an unedited model; it stays in memory between cells that use it."""
        ...

    def load_data(self, ref: DataRef) -> Dataset:
        """Load the records of a reference and verify their hash."""
        ...

    def artifact(self, spec: ArtifactSpec) -> Path:
        """The finished folder of an artifact."""
        ...

    def progress(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """Show a progress bar; call the returned function to advance it."""
        ...


Ends = Callable[[int, int], bool]
"""Called with the number of a row and its next id, in order; returns whether the row ends with this id."""


class TokenScore(NamedTuple):
    """A model's log-probability of one id of a text.

    Attributes:
        logprob: natural logarithm of the id's probability.
        best: the most probable id at its position.
        best_logprob: natural logarithm of its probability.
    """

    logprob: float
    best: int
    best_logprob: float


class EditedModel(ABC):
    """A model after editing, with changed weights, a routed memory or an ensemble.

    All calls are batched. The harness always calls `revert`, even after an exception.
    """

    @abstractmethod
    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """Return the arg-max id at each target position under teacher forcing; one list per query."""

    @abstractmethod
    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """Continue each prompt greedily by exactly as many ids as its target has."""

    def generate_until(self, queries: Sequence[Query], ends: Ends) -> list[list[int]]:
        """Continue each prompt greedily until a row ends, by at most as many ids as its target has; the last id included.

        By default, generates everything first. A model that can call `ends` while it decodes stops earlier and can be
        followed as it writes. Ids do not depend on when other rows end.
        """
        made = self.generate(queries)
        return [ids[: _length(row, ids, ends)] for row, ids in enumerate(made)]

    def score(self, queries: Sequence[Query], *, reads_targets: bool = False) -> list[list[TokenScore]]:
        """Return the log-probability of each id of the targets after the prompt and the ids before it.

        Args:
            queries: prompts and targets; the ids count, not the texts.
            reads_targets: let routing decisions read the targets too, for texts without a known end of the prompt.

        Raises:
            UserError: if the method chooses tokens without giving them probabilities; the default.
        """
        raise UserError(
            f"{type(self).__name__} chooses tokens without giving them probabilities",
            fix="generate text, without logprobs",
        )

    def scope(self, queries: Sequence[Query]) -> list[float] | None:
        """Return the routing score of each prompt in [0, 1], 1 for in scope of an edit; None if the method has none."""
        return None

    def diagnostics(self) -> Mapping[str, float]:
        """Return further numbers about the edit, stored with the metrics."""
        return {}

    def remarks(self) -> Sequence[str]:
        """Return what readers of the scores must know about this edit, one clause each; shown by the run and under tables."""
        return ()

    def formula_flops(self) -> Mapping[str, int]:
        """Return FLOPs, or tokens that cost as much, by the formulas of the method's paper; stored next to those counted."""
        return {}

    def state(self) -> State:
        """Return all state outside the weights, from which `Method.extend` rebuilds the same model bit for bit."""
        return {}

    def revert(self) -> None:
        """Restore the model passed to `edit`, bit for bit."""
        return


def _length(row: int, ids: Sequence[int], ends: Ends) -> int:
    """Number of ids up to the one that a row ends with."""
    return next((place for place, id_ in enumerate(ids, 1) if ends(row, id_)), len(ids))


class Method(ABC):
    """An editing method with its hyper-parameters. Register subclasses with `harness.registry.register`.

    Class attributes:
        spec: set by `register`.
        Hparams: class of the hyper-parameters.
        preset: hyper-parameter values that override the method's files; variants and suites override them in turn.
        differences: known differences from a different implementation of the same method, one sentence each; printed in the
            parity table.
        uncounted: why FLOPs of this implementation cannot be counted here, one clause; empty if they can.
    """

    spec: ClassVar[MethodSpec]
    Hparams: ClassVar[type[Hparams]] = Hparams
    preset: ClassVar[Mapping[str, Any]] = {}
    differences: ClassVar[tuple[str, ...]] = ()
    uncounted: ClassVar[str] = ""

    def __init__(self, hparams: Any) -> None:
        self.hparams = hparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """Declare the artifacts that `edit` needs, by role. Must not import torch or read files.

        Those that decide hyper-parameters (`Choice`) are added by the harness, under the name of the hyper-parameter.

        Raises:
            UserError: if this combination cannot be run here, with the reason.
        """
        return {}

    @abstractmethod
    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Apply all requests to an unedited model, timing the phases with `context.clock`.

        Args:
            model: the unedited model; the result's `revert` must undo all changes.
            requests: the edits to apply.
            artifacts: folders of the artifacts by role, as declared by `artifacts`.
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
        """Apply further requests on top of earlier ones; by default, call `edit` on the current model.

        Methods that keep state outside the weights override this. Other methods can edit sequentially without further
        code, but only the first edit's `revert` is called at the end, so it must restore everything that later edits may
        change.

        Args:
            model: the model with the weights left by earlier edits; unedited for memory-based methods.
            state: the last edit's `EditedModel.state`, on the model's device. Must not be modified in place.
            requests: the further requests; if empty, restore the model as it was when `state` was taken.
            artifacts, context: as for `edit`. The seed is the same for every call, so a method that draws random numbers
                must keep the generator's state in `state`.
        """
        return self.edit(model, requests, artifacts, context)

    def artifacts_in_sequence(
        self, target: "ModelRef", data: DataRef, seed: int, ends: Sequence[int]
    ) -> Mapping[str, ArtifactSpec]:
        """Declare what a sequence of edits needs; by default the same as for all edits at once.

        Args:
            target, data, seed: as for `artifacts`.
            ends: number of edits after each block, ascending; the last is the number of all edits.
        """
        return self.artifacts(target, data, seed)

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """Estimate what a cell needs in addition to the loaded target model. Must not import torch or read files.

        Launchers ask for that much memory, so a method overrides this where it knows more. The default is that of a method
        that trains one feed-forward matrix with Adam on 32 prompts at a time.

        Args:
            target: the target model.
            data: the edits.
            eval_batch: questions per forward pass.
        """
        model = target.footprint
        tokens = min(32, data.edits) * PROMPT_TOKENS
        return Memory(
            kept={"edited matrix": model.edited_matrix},
            edit={
                "gradient and Adam": 3 * model.matrix_fp32,
                "activations": model.backward(tokens, model.n_layers),
                "logits": model.logits(tokens, 4),
            },
        )

    def code_identity(self) -> Mapping[str, str]:
        """Identify the version of third-party code; part of the cell's identity."""
        return {}

    def provenance(self) -> Mapping[str, Any]:
        """Describe third-party code for the cell's provenance."""
        return {}

    def prompt_overhead(self) -> int:
        """Maximum number of tokens that the method puts before an edit's prompt, so that plans can refuse edits that do not fit."""
        return 0

    @property
    def unscored(self) -> str:
        """Why its edited models have no `score`, one clause; empty if they have. Plans say so before anything is computed."""
        return ""

    @classmethod
    def edits_in_sequence(cls) -> bool:
        """Whether the method supports sequential edits: it changes weights only, or it overrides `extend`."""
        return cls.spec.is_in_weights or cls.extend is not Method.extend


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check of `harness doctor`."""

    what: str
    is_present: bool
    detail: str


class Backend(ABC):
    """A different code base that implements methods under the same names as the native ones.

    Attributes:
        commands: `module:app` of a typer application with the backend's own commands, or empty.
    """

    commands: ClassVar[str] = ""

    @abstractmethod
    def is_available(self) -> bool:
        """Whether the backend can run on this machine."""

    def findings(self) -> Iterator[Finding]:
        """Yield the checks that `harness doctor` reports."""
        yield from ()


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
    def cancel(cls, store: "Store", suite: str, scale: str) -> Iterator[str]:
        """Cancel the unfinished launches of a suite, and yield each name once none of its jobs can write any more.

        Finished cells are kept; unfinished ones return to `to do`.

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
