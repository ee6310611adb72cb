"""The content-addressed cache of what is expensive: built once, charged to all cells that use it."""

import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness.canonical import digest
from harness.cost import PhaseClock
from harness.errors import UserError
from harness.store import Store, write_json
from methods.base import ArtifactSpec, Context


class ArtifactCache:
    """Artifacts of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def is_built(self, spec: ArtifactSpec) -> bool:
        """Whether the finished artifact lies in the store."""
        return self._store.artifact(spec.name, spec.key).is_done

    def folder(self, spec: ArtifactSpec) -> Path:
        """The finished artifact's folder.

        Raises:
            UserError: when the folder's content was not made by this identity (somebody edited it).
            FileNotFoundError: when it is not built.
        """
        folder = self._store.artifact(spec.name, spec.key)
        if not folder.is_done:
            raise FileNotFoundError(f"artifact {spec.name}/{spec.key} is not built")
        kept = folder.read("artifact.json")
        if digest([kept["name"], kept["identity"]]) != digest([spec.name, spec.identity]):
            raise UserError(f"{folder.path}: its content does not match its key", fix=f"rm -r {folder.path}")
        return folder.path

    def build(self, spec: ArtifactSpec, context: Context, clock: PhaseClock) -> Path:
        """Build one artifact, whose needs are built, under its own clock."""
        module, _, function = spec.builder.partition(":")
        builder = getattr(importlib.import_module(module), function)
        with self._store.artifact(spec.name, spec.key).writing() as folder:
            builder(spec, context, folder)
            write_json(folder / "artifact.json", describe(spec))
            write_json(folder / "cost.json", {"phases_s": clock.seconds, "device": clock.device})
        return self.folder(spec)

    def phases_s(self, specs: Iterable[ArtifactSpec]) -> dict[str, float]:
        """Seconds per phase that these artifacts and all they need have cost; stand-in models cost nothing."""
        total: dict[str, float] = {}
        for spec in {need.key: need for root in specs for need in closure(root)}.values():
            if spec.kind != "model":
                for phase, seconds in self._store.artifact(spec.name, spec.key).read("cost.json")["phases_s"].items():
                    total[phase] = total.get(phase, 0.0) + seconds
        return total


def describe(spec: ArtifactSpec) -> dict[str, Any]:
    """The content of artifact.json."""
    needs = {role: need.key for role, need in spec.needs.items()}
    return {"name": spec.name, "kind": spec.kind, "key": spec.key, "identity": spec.identity, "needs": needs}


def closure(spec: ArtifactSpec) -> Iterator[ArtifactSpec]:
    """The artifact and all it needs, needs first."""
    for need in spec.needs.values():
        yield from closure(need)
    yield spec
