"""A cell: one method on one model and one data set, with everything that decides its result and the id that follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from harness.canonical import digest
from harness.evaluation import unedited
from harness.evaluation.protocols import PROTOCOLS
from harness.models import zoo
from harness.models.catalogue import ModelRef, entry
from harness.records import DataRef
from harness.schedule import FirstEdits, Schedule
from methods.base import ArtifactSpec, Editor, MethodSpec


@dataclass(frozen=True)
class Cell:
    """One combination of a suite's axes.

    Attributes:
        method: the method's spec.
        label: its name in tables, apart from other entries of the same method.
        hparams: resolved values; `sources` says where each comes from and is not part of the identity.
        protocols: names of the evaluation protocols, which carry versions of their own.
        schedule: fitted to the data.
        eval_batch: rows per forward pass; part of the identity because rounding depends on it.
    """

    method: MethodSpec
    label: str
    variant: str | None
    backend: str
    hparams: Mapping[str, Any]
    sources: Mapping[str, str]
    model: ModelRef
    data: DataRef
    protocols: tuple[str, ...]
    schedule: Schedule
    seed: int
    eval_batch: int

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, the recipes of its artifacts too. Paths, devices, launchers, labels do not."""
        made_from = {**self.model_artifacts(), **self.artifacts()}
        return {
            "method": {
                "name": self.method.name,
                "version": self.method.version,
                "backend": self.backend,
                "hparams": dict(self.hparams),
            },
            "model": self.model.identity(),
            "data": self.data.identity(),
            "protocols": {name: PROTOCOLS[name].version for name in self.protocols},
            "schedule": self.schedule.identity(),
            "seed": self.seed,
            "eval_batch": self.eval_batch,
            "artifacts": {role: spec.key for role, spec in made_from.items()},
        }

    @cached_property
    def cell_id(self) -> str:
        """sha256 of the identity."""
        return digest(self.identity())

    @property
    def folder(self) -> str:
        """Readable and unique name of the cell's folder."""
        return f"{self.label}-{self.model.name.replace('/', '_')}-{self.data.name}-{self.cell_id[:12]}"

    def editor(self) -> Editor:
        """The method with this cell's hyper-parameters."""
        from methods.registry import get

        method = get(self.method.name)
        return method(method.Hparams.model_validate(self.hparams))

    def artifacts(self) -> Mapping[str, ArtifactSpec]:
        """What the method needs before it edits, by role."""
        return self.editor().artifacts(self.model, self.data, self.seed)

    def model_artifacts(self) -> Mapping[str, ArtifactSpec]:
        """The training of the model, where it is one of the zoo; else nothing."""
        return {"model": zoo.artifact(self.model)} if self.model.weights == "zoo" else {}

    def data_at(self, edits: int) -> DataRef:
        """The records that are scored after so many edits."""
        return self.data if edits == self.data.edits else FirstEdits.of(self.data, edits)

    def unedited_outputs(self, edits: int) -> ArtifactSpec:
        """What the unedited model answers to the questions after so many edits; shared by all methods on the model."""
        data = self.data_at(edits)
        return unedited.artifact(self.model, data, self.protocols, self.eval_batch, self.model_artifacts())

    def all_unedited_outputs(self) -> list[ArtifactSpec]:
        """The same for each point that is scored; none for random weights, whose answers mean nothing."""
        if self.model.weights == "random":
            return []
        return [self.unedited_outputs(edits) for edits in self.schedule.points(self.data.edits)]

    def description(self) -> dict[str, Any]:
        """The content of cell.json: the identity, with what tables need to name it."""
        from harness.data.catalogue import DATASETS

        identity = self.identity()
        identity["method"] |= {
            "title": self.method.title,
            "variant": self.variant,
            "edits": self.method.edits,
            "sources": dict(self.sources),
        }
        identity["model"] |= {"title": entry(self.model.name).title}
        identity["data"] |= {"title": DATASETS[self.data.name].title}
        return {"cell_id": self.cell_id, "label": self.label, **identity}
