"""A task: an artifact to be built or a cell to be run, known by the folder that it fills. No torch until it runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from harness.api import ArtifactSpec
from harness.files import write_json
from harness.models.catalogue import ModelRef
from harness.plan.cell import Cell
from harness.plan.plan import roots
from harness.store import provenance
from harness.store.store import Folder, Store

if TYPE_CHECKING:
    from harness.run.runner import Runner


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a task ended: `reason` is None for a finished one."""

    seconds: float
    reason: str | None = None


class Task(Protocol):
    """What a unit of work consists of. Settled once its folder holds DONE or FAILED."""

    @property
    def place(self) -> str:
        """Its folder below the store, `cells/…` or `artifacts/…/…`: its name everywhere in a launch."""
        ...

    @property
    def title(self) -> str:
        """What it is, for a line on the screen."""
        ...

    @property
    def needs(self) -> Sequence[ArtifactSpec]:
        """Artifacts that must be built before."""
        ...

    @property
    def models(self) -> Sequence[ModelRef]:
        """Models that it loads, the one that it is about first; none where it loads none."""
        ...

    def folder(self, store: Store) -> Folder:
        """Where its result or the reason of its failure lies."""
        ...

    def run(self, runner: "Runner") -> Outcome:
        """Do it; a failure is recorded and returned. Raises only when the store cannot be written."""
        ...

    def fail(self, store: Store, reason: str, log: str = "") -> None:
        """Record why it has no result, in place of it."""
        ...


@dataclass(frozen=True, slots=True)
class BuildArtifact:
    """An artifact and the seed it is built with."""

    spec: ArtifactSpec
    seed: int

    @property
    def place(self) -> str:
        """As `Task.place`."""
        return f"artifacts/{self.spec.name}/{self.spec.key}"

    @property
    def title(self) -> str:
        """Its kind, and the models and records that it is of."""
        of = " ".join(str(getattr(value, "name", value)) for value in self.spec.inputs.values())
        return f"artifact {self.spec.name} {of}"

    @property
    def needs(self) -> Sequence[ArtifactSpec]:
        """As `Task.needs`."""
        return tuple(self.spec.needs.values())

    @property
    def models(self) -> Sequence[ModelRef]:
        """As `Task.models`."""
        return _models([self.spec])

    def folder(self, store: Store) -> Folder:
        """As `Task.folder`."""
        return store.artifact(self.spec.name, self.spec.key)

    def run(self, runner: "Runner") -> Outcome:
        """As `Task.run`."""
        return runner.build(self.spec, self.seed)

    def fail(self, store: Store, reason: str, log: str = "") -> None:
        """As `Task.fail`."""
        with self.folder(store).failing(reason) as folder:
            write_json(folder / "artifact.json", self.spec.description())
            write_json(folder / "provenance.json", provenance.environment())
            (folder / "log.txt").write_text(log or reason)


@dataclass(frozen=True, slots=True)
class RunCell:
    """A cell."""

    cell: Cell

    @property
    def place(self) -> str:
        """As `Task.place`."""
        return f"cells/{self.cell.folder}"

    @property
    def title(self) -> str:
        """Method, model and data set."""
        return f"{self.cell.label} on {self.cell.model.name}, {self.cell.data.name}"

    @property
    def needs(self) -> Sequence[ArtifactSpec]:
        """As `Task.needs`."""
        return roots(self.cell)

    @property
    def models(self) -> Sequence[ModelRef]:
        """As `Task.models`."""
        return list(dict.fromkeys([self.cell.model, *_models(self.cell.artifacts().values())]))

    def folder(self, store: Store) -> Folder:
        """As `Task.folder`."""
        return store.cell(self.cell.folder)

    def run(self, runner: "Runner") -> Outcome:
        """As `Task.run`."""
        return runner.run(self.cell)

    def fail(self, store: Store, reason: str, log: str = "") -> None:
        """As `Task.fail`."""
        with self.folder(store).failing(reason) as folder:
            write_json(folder / "cell.json", self.cell.description())
            write_json(folder / "provenance.json", provenance.environment())
            (folder / "log.txt").write_text(log or reason)


def _models(specs: Iterable[ArtifactSpec]) -> list[ModelRef]:
    return [value for spec in specs for value in spec.inputs.values() if isinstance(value, ModelRef)]
