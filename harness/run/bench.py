"""What the edits of a cell are made with: the method with decided hyper-parameters, the model, the finished artifacts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import registry
from harness.api import ArtifactSpec, Method
from harness.errors import UserError
from harness.evaluation.protocol import Protocol
from harness.models.catalogue import ModelRef
from harness.models.loaded import LoadedModel
from harness.plan.cell import Cell
from harness.run.context import RunContext
from harness.store.artifacts import ArtifactCache
from harness.store.store import Store


@dataclass(frozen=True, slots=True)
class Bench:
    """A cell ready to be edited.

    Attributes:
        folders: of the method's artifacts, by role.
        chosen: values of hyper-parameters that artifacts decided.
    """

    cell: Cell
    method: Method
    model: LoadedModel
    folders: Mapping[str, Path]
    chosen: Mapping[str, Any]

    @classmethod
    def of(cls, cell: Cell, store: Store, context: RunContext) -> "Bench":
        """Load what a cell needs; its artifacts are built.

        Raises:
            UserError: for an artifact that was made with other files of a model than are there now.
        """
        needed = cell.artifacts()
        for root in needed.values():
            for spec in root.closure():
                verify_models(spec, store, context)
        cache = ArtifactCache(store)
        folders = {role: cache.folder(spec) for role, spec in needed.items()}
        method, chosen = cell.decided(folders)
        return cls(cell, method, context.load_model(cell.model), folders, chosen)

    @property
    def protocols(self) -> list[Protocol]:
        """The cell's protocols, in the form used for its method."""
        return [registry.protocols.get(name).of(self.cell.method) for name in self.cell.protocols]


def models_by_role(spec: ArtifactSpec) -> dict[str, ModelRef]:
    """The models that an artifact is made with."""
    return {role: ref for role, ref in spec.inputs.items() if isinstance(ref, ModelRef)}


def verify_models(spec: ArtifactSpec, store: Store, context: RunContext) -> None:
    """Refuse an artifact that was made with other files of a model than are there now.

    Its key says which model, but those that are trained here are known by their recipe, whose outcome may differ.
    """
    folder = store.artifact(spec.name, spec.key)
    made: Mapping[str, Mapping[str, str]] = folder.read("artifact.json").get("models", {})
    for role, ref in models_by_role(spec).items():
        now = context.model_hashes(ref)
        if other := [part for part in now if role in made and made[role].get(part) != now[part]]:
            raise UserError(
                f"{folder.path} was made with a different model: {ref.name} now has a different {other[0]}",
                fix=f"rm -r {folder.path}, then run the suite again",
            )
