"""The unedited model: what every method is measured against."""

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
    """No edit at all. Its reliability says how much of the new facts the model would have said anyway."""

    def edit(
        self,
        model: "LoadedModel",
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """The model as it is; no phase is timed because nothing is done."""
        from harness.models.edited import WeightEditedModel

        return WeightEditedModel(model)
