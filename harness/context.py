"""What the runner lends to editors and builders: models, records and artifacts, each loaded once while they are needed."""

import dataclasses
from collections.abc import Collection
from contextlib import AbstractContextManager
from pathlib import Path

from harness.artifacts import ArtifactCache
from harness.cost import PhaseClock
from harness.data.load import load as load_records
from harness.models import zoo
from harness.models.catalogue import ModelRef
from harness.models.loaded import LoadedModel
from harness.progress import Bars
from harness.records import DataRef, DataSet
from harness.schedule import FirstEdits
from methods.base import Advance, ArtifactSpec


class RunContext:
    """The `methods.base.Context` of a process that runs cells one after the other."""

    def __init__(self, artifacts: ArtifactCache, device: str, bars: Bars) -> None:
        self.device = device
        self.seed = 0
        self.clock = PhaseClock(device)
        self._artifacts = artifacts
        self._bars = bars
        self._models: dict[ModelRef, LoadedModel] = {}
        self._data: dict[DataRef, DataSet] = {}

    def restart(self, seed: int) -> PhaseClock:
        """A fresh clock for the next cell or artifact, and its seed."""
        self.seed = seed
        self.clock = PhaseClock(self.device)
        return self.clock

    def load_model(self, ref: ModelRef) -> LoadedModel:
        """The model of a reference, unedited. The caller leaves it as it was."""
        from harness.models.loading import load

        if ref not in self._models:
            made = ref
            if ref.weights == "zoo":
                made = dataclasses.replace(ref, source=str(self.artifact(zoo.artifact(ref))))
            self._models[ref] = load(made, self.device)
        return self._models[ref]

    def keep_models(self, refs: Collection[ModelRef]) -> None:
        """Forget all models but these. An idle one would count in the next task's peak memory, and may leave it no room."""
        self._models = {ref: model for ref, model in self._models.items() if ref in refs}

    def forget_models(self) -> None:
        """Load every model anew from now on: one of them may have been left damaged."""
        self._models.clear()

    def load_data(self, ref: DataRef) -> DataSet:
        """The records of a reference."""
        if isinstance(ref, FirstEdits):
            return ref.cut(self.load_data(ref.whole))
        if ref not in self._data:
            self._data[ref] = load_records(ref)
        return self._data[ref]

    def artifact(self, spec: ArtifactSpec) -> Path:
        """The finished folder of an artifact."""
        return self._artifacts.folder(spec)

    def progress(self, description: str, total: int) -> AbstractContextManager[Advance]:
        """A progress bar of the run."""
        return self._bars.bar(description, total)
