"""Content-addressed cache of artifacts. Each is built once, and its cost is charged to every cell that uses it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from harness.api import ArtifactSpec
from harness.commands import same_command
from harness.errors import UserError
from harness.identity import digest
from harness.store.store import Store


class ArtifactCache:
    """The artifacts of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def is_built(self, spec: ArtifactSpec) -> bool:
        """Whether the artifact is in the store and complete."""
        return self._store.artifact(spec.name, spec.key).is_done

    def folder(self, spec: ArtifactSpec) -> Path:
        """Folder of a finished artifact.

        Raises:
            UserError: if the content does not match the identity, for example because it was edited by hand.
            FileNotFoundError: if the artifact has not been built.
        """
        folder = self._store.artifact(spec.name, spec.key)
        if not folder.is_done:
            raise FileNotFoundError(f"artifact {spec.name}/{spec.key} is not built")
        kept = folder.read("artifact.json")
        if digest({key: kept.get(key) for key in spec.content}) != digest(spec.content):
            raise UserError(
                f"{folder.path}: its content does not match its key", fix=f"rm -r {folder.path} && {same_command()}"
            )
        return folder.path

    def phases_s(self, specs: Iterable[ArtifactSpec]) -> dict[str, float]:
        """Total seconds per phase for these artifacts and all their dependencies; stand-in models are not counted."""
        total: dict[str, float] = {}
        for cost in self._costs(specs):
            for phase, seconds in cost["phases_s"].items():
                total[phase] = total.get(phase, 0.0) + seconds
        return total

    def reusable_phases_s(self, specs: Iterable[ArtifactSpec]) -> dict[str, float]:
        """As `phases_s`, without the artifacts that depend on edits, which each edit run has to build anew."""
        needed = {need.key: need for root in specs for need in root.closure()}.values()
        return self.phases_s(spec for spec in needed if all(need.kind != "edit" for need in spec.closure()))

    def device_classes(self, specs: Iterable[ArtifactSpec], own: str) -> dict[str, set[str]]:
        """By phase, the classes of device that these seconds were measured on.

        Args:
            specs: as for `phases_s`.
            own: class of the device of the cell, in place of what was not recorded when an artifact was built.
        """
        found: dict[str, set[str]] = {}
        for cost in self._costs(specs):
            for phase in cost["phases_s"]:
                found.setdefault(phase, set()).add(cost.get("device_class", own))
        return found

    def peak_memory_bytes(self, specs: Iterable[ArtifactSpec], own: int) -> int | None:
        """Highest memory use of a cell and of building these artifacts and all their dependencies.

        Args:
            specs: as for `phases_s`.
            own: peak of the cell.

        Returns:
            The peak, or None if that of an artifact was not recorded when it was built.
        """
        peaks = [cost.get("peak_memory_bytes") for cost in self._costs(specs)]
        known = [peak for peak in peaks if peak is not None]
        return max([own, *known]) if len(known) == len(peaks) else None

    def shared_by(self, specs: Iterable[ArtifactSpec], own: int) -> int:
        """Maximum number of processes that shared a device while a cell or these artifacts were timed.

        Args:
            specs: as for `phases_s`; one that does not say was built alone.
            own: of the cell.
        """
        return max([own, *(int(cost.get("shared_by", 1)) for cost in self._costs(specs))])

    def built_on(self, spec: ArtifactSpec) -> str | None:
        """Class of the device that an artifact was built on, however many processes shared it; None if not recorded."""
        cost = self._store.artifact(spec.name, spec.key).read("cost.json")
        found: str | None = cost.get("hardware", cost.get("device_class"))
        return found

    def _costs(self, specs: Iterable[ArtifactSpec]) -> Iterator[dict[str, Any]]:
        for spec in {need.key: need for root in specs for need in root.closure()}.values():
            if spec.kind != "model":
                yield self._store.artifact(spec.name, spec.key).read("cost.json")
