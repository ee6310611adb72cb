"""Methods that edit nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import Context, EditedModel, Method
from harness.records import EditRequest

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel


class UneditedMethod(Method):
    """Base class of references: the model is evaluated as it is."""

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
