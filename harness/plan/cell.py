"""A cell: one method on one model and one dataset, with everything that decides its result and the id that follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from harness import registry
from harness.api import ArtifactSpec, Method
from harness.evaluation import unedited
from harness.evaluation.capability import scores
from harness.evaluation.capability.tasks import TaskRef
from harness.evaluation.fluency import FluencyRef
from harness.identity import digest
from harness.models.catalogue import ModelRef
from harness.records import DataRef, first_edits
from harness.registry import MethodSpec
from harness.suite.schedule import Schedule

SHARED = 1024
"""How many artifact specs that cells on one model and dataset share are remembered."""


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
        keep_weights: the edited weights are kept next to the results; in the identity only if they are.
        count_flops: number of edits on which FLOPs are counted, 0 for none; not part of the identity.
        classic: CounterFact's metrics by probability are computed as well; in the identity only if they are.
        fluency: reference texts of metrics of generated text, which are computed if it is given; in the identity only then.
        capability: benchmark tasks that are asked before and after editing; in the identity only if there are some.
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
    keep_weights: bool = False
    count_flops: int = 0
    classic: bool = False
    fluency: FluencyRef | None = None
    capability: tuple[TaskRef, ...] = ()

    def identity(self) -> dict[str, Any]:
        """Everything that decides the result, including its artifacts' recipes; no paths, devices, launchers or labels."""
        artifacts, method = {**model_artifacts(self.model), **self.artifacts()}, self.planned_method
        return {
            "method": {
                "name": self.method.name,
                "version": self.method.version,
                "backend": self.backend,
                "hparams": method.hparams.identity(),
                **({"code": code} if (code := registry.code_of(method)) else {}),
                **method.identity_on(self.model),
            },
            "model": self.model.identity(),
            "data": self.data.identity(),
            "protocols": unedited.protocol_versions(self.protocols),
            "schedule": self.schedule.identity(),
            "seed": self.seed,
            "eval_batch": self.eval_batch,
            "artifacts": {role: spec.key for role, spec in artifacts.items()},
            **({"keep_weights": True} if self.keep_weights else {}),
            **({"classic": True} if self.classic else {}),
            **({"fluency": self.fluency.identity()} if self.fluency else {}),
            **({"capability": [task.identity() for task in self.capability]} if self.capability else {}),
        }

    @cached_property
    def cell_id(self) -> str:
        """sha256 of the identity."""
        return digest(self.identity())

    @cached_property
    def folder(self) -> str:
        """Readable and unique name of the cell's folder."""
        return f"{stem(self.label, self.model.name, self.data.name)}-{self.cell_id[:12]}"

    @property
    def extra(self) -> str:
        """Prompt template and seed where they distinguish it: `prompt paper, seed 1`, or nothing."""
        return extra(self.data.template, self.seed)

    def instance(self) -> Method:
        """The method with this cell's hyper-parameters."""
        method = registry.find_method(self.method.name, self.backend)
        return method(method.Hparams.model_validate(self.hparams))

    def decided(self, artifacts: Mapping[str, Path]) -> tuple[Method, Mapping[str, Any]]:
        """The method with all hyper-parameters decided, and the values that artifacts decided.

        Args:
            artifacts: folders of this cell's artifacts, by role.
        """
        hparams, chosen = self.instance().hparams.decided(artifacts)
        return registry.find_method(self.method.name, self.backend)(hparams), chosen

    def artifacts(self) -> Mapping[str, ArtifactSpec]:
        """The artifacts that the method needs, by role; one that decides a hyper-parameter has its name."""
        return self._recipes

    @cached_property
    def _recipes(self) -> Mapping[str, ArtifactSpec]:
        method, given = self.planned_method, (self.model, self.data, self.seed)
        deciding = {name: choice.artifact(*given) for name, choice in method.hparams.choices().items()}
        if not self.schedule.is_sequential:
            return {**deciding, **method.artifacts(*given)}
        ends = [block.stop for block in self.schedule.blocks(self.data.edits)]
        return {**deciding, **method.artifacts_in_sequence(*given, ends)}

    @cached_property
    def planned_method(self) -> Method:
        """An instance that plans and estimates; it never edits, so it has no state."""
        return self.instance()

    def __getstate__(self) -> dict[str, Any]:
        """State without derived values: a different process checks whether its own code derives the same."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def data_at(self, edits: int) -> DataRef:
        """The records that are scored after this many edits."""
        return first_edits(self.data, edits)

    def unedited_outputs(self, edits: int) -> ArtifactSpec:
        """The unedited model's answers to the questions after this many edits; shared by all methods on the model."""
        return _unedited_outputs(self.model, self.data_at(edits), self.protocols, self.eval_batch)

    def all_unedited_outputs(self) -> list[ArtifactSpec]:
        """The same for each point that is scored; none for random weights, whose answers mean nothing."""
        if self.model.weights == "random":
            return []
        return [self.unedited_outputs(edits) for edits in self.schedule.points(self.data.edits)]

    def unedited_capability(self) -> list[ArtifactSpec]:
        """The unedited model's scores on each benchmark task; shared by all cells on the model. Empty for random weights."""
        if self.model.weights == "random":
            return []
        return [scores.artifact(self.model, task, self.eval_batch) for task in self.capability]

    def description(self) -> dict[str, Any]:
        """The content of cell.json: the identity, with what tables need to name it."""
        identity, method = self.identity(), self.instance()
        identity["method"] |= {
            "title": self.method.title,
            "variant": self.variant,
            "edits": self.method.edits,
            "sources": dict(self.sources),
            "differences": list(method.differences_on(self.model)),
        }
        identity["model"] |= {"title": self.model.title}
        identity["data"] |= {"title": registry.datasets.get(self.data.name).title}
        return {"cell_id": self.cell_id, "label": self.label, **identity}


def extra(template: str, seed: int) -> str:
    """Prompt template and seed, where they are not the usual ones."""
    return ", ".join([f"prompt {template}"] * (template != "none") + [f"seed {seed}"] * (seed != 0))


def stem(label: str, model: str, data: str) -> str:
    """The beginning of the name of a cell's folder."""
    return f"{label}-{model.replace('/', '_')}-{data}"


def models_of(work: Cell | ArtifactSpec) -> tuple[ModelRef, ...]:
    """The models that a cell or the builder of an artifact loads, each once; a cell's own comes first."""
    own = [work.model] if isinstance(work, Cell) else []
    specs = work.artifacts().values() if isinstance(work, Cell) else [work]
    loaded = (value for spec in specs for value in spec.inputs.values() if isinstance(value, ModelRef))
    return tuple(dict.fromkeys([*own, *loaded]))


@lru_cache(maxsize=SHARED)
def model_artifacts(model: ModelRef) -> Mapping[str, ArtifactSpec]:
    """The artifacts that a model needs before it can be loaded; one object for all cells, so that its key is computed once."""
    return model.artifacts()


@lru_cache(maxsize=SHARED)
def _unedited_outputs(model: ModelRef, data: DataRef, protocols: tuple[str, ...], eval_batch: int) -> ArtifactSpec:
    return unedited.artifact(model, data, protocols, eval_batch)
