"""Methods that edit nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import Context, EditedModel, Method
from harness.memory import Memory
from harness.records import DataRef, EditRequest

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel


class UneditedMethod(Method):
    """Base class of references: the model is evaluated as it is."""

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """Nothing in addition to the model."""
        return Memory()

    def edit(
        self,
        model: "LoadedModel",
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Return the model unchanged; no phase is timed because nothing is done."""
        from harness.models.edited import WeightEditedModel

        return WeightEditedModel(model)
