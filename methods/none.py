"""The unedited model, the reference for every method."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import Context, EditedModel, Method
from harness.records import EditRequest
from harness.registry import register

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel


@register("none", title="Unedited", family="reference", version=1, edits=False)
class Unedited(Method):
    """The unedited baseline. Its reliability shows how many of the new facts the model predicts anyway."""

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
