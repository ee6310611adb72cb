"""Services that the runner provides to methods and artifact builders: a clock, models, records, artifacts, progress bars."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from harness.api.artifact import ArtifactSpec
from harness.records import DataRef, Dataset

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel

Phase = Literal["setup", "edit", "attach", "evaluate"]
"""Timed phases of a cell; docs/timing.md defines what each includes."""


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
