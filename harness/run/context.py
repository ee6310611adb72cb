"""Services of the runner for methods and builders: models, records and artifacts, each loaded once while they are needed."""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from harness.api import Advance, ArtifactSpec
from harness.data.load import load as load_records
from harness.models import checkpoint
from harness.models.catalogue import ModelRef
from harness.models.loaded import LoadedModel
from harness.records import DataRef, Dataset, FirstEdits
from harness.run.cost import PeakMemory, PhaseClock, device_class
from harness.run.progress import Bars
from harness.store.artifacts import ArtifactCache


class RunContext:
    """The `harness.api.Context` of a process that runs cells one after the other.

    Args:
        shared_by: as in a batch.

    Attributes:
        peak_memory: of the present cell or artifact.
        steps: of the present cell or artifact, how far each of its progress bars came, by description.
    """

    def __init__(self, artifacts: ArtifactCache, device: str, bars: Bars, shared_by: int = 1) -> None:
        self.device = device
        self.shared_by = shared_by
        self.seed = 0
        self.clock = PhaseClock(device)
        self.peak_memory = PeakMemory(device)
        self.steps: Counter[str] = Counter()
        self._artifacts = artifacts
        self._bars = bars
        self._models: dict[ModelRef, LoadedModel] = {}
        self._data: dict[DataRef, Dataset] = {}

    @property
    def device_class(self) -> str:
        """What times are measured on here; see `harness.run.cost.device_class`."""
        return device_class(self.device, self.shared_by)

    def restart(self, seed: int) -> PhaseClock:
        """A fresh clock for the next cell or artifact, and its seed."""
        self.seed = seed
        self.clock = PhaseClock(self.device)
        self.steps = Counter()
        return self.clock

    def load_model(self, ref: ModelRef) -> LoadedModel:
        """The model of a reference, unedited. The caller leaves it as it was."""
        from harness.models.loading import load

        if ref not in self._models:
            self._models[ref] = load(self._found(ref), self.device)
        return self._models[ref]

    def model_hashes(self, ref: ModelRef) -> dict[str, str]:
        """Hashes of the files that a model is loaded from, by part; none for random weights."""
        from harness.models.loading import folder_of

        return {} if ref.weights == "random" else checkpoint.inspect(folder_of(self._found(ref))).hashes()

    def _found(self, ref: ModelRef) -> ModelRef:
        """The reference with the folder of a model that is trained here."""
        trained = ref.artifacts()
        return dataclasses.replace(ref, source=str(self.artifact(trained["model"]))) if trained else ref

    def keep_models(self, refs: Collection[ModelRef]) -> None:
        """Forget all models but these. An idle one would count in the next job's peak memory, and may leave it no room."""
        self._models = {ref: model for ref, model in self._models.items() if ref in refs}

    def forget_models(self) -> None:
        """Reload every model from now on, because one of them may be damaged."""
        self._models.clear()

    def load_data(self, ref: DataRef) -> Dataset:
        """The records of a reference."""
        if isinstance(ref, FirstEdits):
            return ref.cut(self.load_data(ref.whole))
        if ref not in self._data:
            self._data[ref] = load_records(ref)
        return self._data[ref]

    def artifact(self, spec: ArtifactSpec) -> Path:
        """The finished folder of an artifact."""
        return self._artifacts.folder(spec)

    @contextlib.contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """A progress bar of the run, whose steps are counted."""
        with self._bars.bar(description, total) as advance:

            def counted(steps: int = 1) -> None:
                self.steps[description] += steps
                advance(steps)

            yield counted
