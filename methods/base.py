"""What a method is to the harness: an `Editor` turns a loaded model into an `EditedModel`, which is all that evaluation sees.

A method module declares (spec, hyper-parameters, artifacts) without importing torch, so that a sweep can be planned on a
login node in a fraction of a second; it imports torch where it computes.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

from pydantic import BaseModel, ConfigDict

from harness.canonical import digest
from harness.records import DataRef, DataSet, EditRequest
from harness.tokens import Query

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel

State: TypeAlias = Mapping[str, "Tensor"]
"""What an edit keeps beside the weights, by names of the method's choice; a file of safetensors can hold it."""


@dataclass(frozen=True, slots=True)
class MethodSpec:
    """What the plan and the tables know of a method.

    Attributes:
        name: as written in a suite, `ft-l`.
        title: as printed in a table, `FT-L`.
        family: `reference`, `weights`, `hypernetwork`, `memory` or `plug-in`; `lies_in_weights` follows from it.
        version: raised whenever results change; part of every cell's identity.
        edits: False for the unedited reference, which has no reliability to speak of and no cost.
        easyedit_scoring: how EasyEdit scores it, for the protocol of that name.
    """

    name: str
    title: str
    family: str
    version: int
    edits: bool = True
    easyedit_scoring: Literal["teacher_forced", "generation"] = "teacher_forced"

    @property
    def lies_in_weights(self) -> bool:
        """Whether an edited model is the model itself with other weights, and nothing beside them."""
        return self.family in ("reference", "weights", "hypernetwork")


class Hparams(BaseModel):
    """Base of every method's hyper-parameters: no unknown key, no change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class ArtifactSpec:
    """Something costly that an edit needs or that cells share, built once and kept by content.

    Attributes:
        name: what it is, `plugin-edit`, `zoo-model`; the folder it is kept in.
        kind: `model` (a stand-in for a pretrained model, never charged), `setup` (before any edit: statistics) or `edit`
            (the edit itself, shared by several target models).
        identity: everything that decides its content, JSON-like; paths and devices are not in it.
        builder: `module:function`, called as `function(spec, context, folder)` to write the files.
        inputs: what the builder needs beside the identity (references to data and models).
        needs: artifacts that must exist first, by role.
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


Backend = Literal["native", "easyedit"]
"""Whose implementation computes a method: our own, or EasyEdit's by way of an adapter."""

Phase = Literal["setup", "edit", "attach", "evaluate"]
"""Parts of a cell's time; docs/timing.md says what belongs to each."""


class Clock(Protocol):
    """Device-synchronised timing of the phases of a cell (see docs/timing.md)."""

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Count what runs inside towards `name`; phases do not nest."""
        ...


class Context(Protocol):
    """What the runner lends to an editor or a builder."""

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
        """The model itself, unedited; kept in memory between cells of one model."""
        ...

    def load_data(self, ref: DataRef) -> DataSet:
        """The records of a reference, verified against its hash."""
        ...

    def artifact(self, spec: ArtifactSpec) -> Path:
        """The finished folder of an artifact."""
        ...

    def progress(self, description: str, total: int) -> AbstractContextManager["Advance"]:
        """A progress bar; call the value with the number of steps done."""
        ...


class Advance(Protocol):
    """Moves a progress bar."""

    def __call__(self, steps: int = 1) -> None:
        """Count this many steps as done."""
        ...


class EditedModel(Protocol):
    """A model after editing, whatever was done to it: new weights, a routed memory, an ensemble.

    `revert` is always called, also after an exception, and gives the model back bit for bit.
    """

    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """Arg-max id at each target position, with the target itself as context; one list per query."""
        ...

    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """Greedy continuation of each prompt by exactly as many ids as its target has."""
        ...

    def scope(self, queries: Sequence[Query]) -> list[float] | None:
        """How far each prompt is taken for one of the edits, in [0, 1]; None if the method does not decide by prompt."""
        ...

    def diagnostics(self) -> Mapping[str, float]:
        """Figures of the method's own, written beside the metrics."""
        ...

    def revert(self) -> None:
        """Restore the model that was given to `edit`."""
        ...


class Editor(Protocol):
    """A method with its hyper-parameters."""

    spec: ClassVar[MethodSpec]
    Hparams: ClassVar[type[Hparams]]

    def __init__(self, hparams: Any) -> None: ...

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """What must be built before `edit`, by role. Pure: no torch, no file is read."""
        ...

    def edit(
        self,
        model: "LoadedModel",
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Apply all requests. Times its own phases through `context.clock`."""
        ...


class StatefulModel(EditedModel, Protocol):
    """An edited model that keeps something beside the weights."""

    def state(self) -> State:
        """All of it, from which `ExtendingEditor.extend` makes the same model again, bit for bit."""
        ...


@runtime_checkable
class ExtendingEditor(Editor, Protocol):
    """A method that keeps something beside the weights, be it only their finer digits, and that can go on from it.

    One that keeps nothing needs none of this: in a sequence its `edit` is called again on the model as it is, and only the
    `revert` of the first call at the end, which therefore gives back whatever later calls may change.
    """

    def edit(
        self,
        model: "LoadedModel",
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> StatefulModel:
        """As `Editor.edit`."""
        ...

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> StatefulModel:
        """Apply further requests on top of all earlier ones.

        Args:
            model: with the weights that the earlier edits left; for a memory, unedited.
            state: what the last edit left beside them, on the model's device. It is not to be changed in place.
            requests: the further ones; with none at all, the model is what it was when `state` was taken.
            artifacts, context: as for `edit`, the seed too: who draws random numbers keeps in `state` how far it is.
        """
        ...


@runtime_checkable
class ForeignEditor(Editor, Protocol):
    """A method that is computed by code which does not belong to this project.

    Attributes:
        instead: values of hyper-parameters that it has in the place of those in the method's files.
        differences: what is known to differ from our own implementation of the same, a sentence each.
    """

    instead: ClassVar[Mapping[str, Any]]
    differences: ClassVar[tuple[str, ...]]

    def code(self) -> Mapping[str, str]:
        """What tells that code from any other version of it: part of the cell's identity. Called after `artifacts`."""
        ...

    def origin(self) -> Mapping[str, Any]:
        """What the cell's provenance says of it."""
        ...


def edits_in_sequence(method: type[Editor]) -> bool:
    """Whether a method can go on from its own edits."""
    return method.spec.lies_in_weights or hasattr(method, "extend")
