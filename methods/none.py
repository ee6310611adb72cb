"""The unedited model: what every method is measured against."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.records import DataRef, EditRequest
from methods.base import ArtifactSpec, Context, EditedModel, Hparams, MethodSpec
from methods.registry import register

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel


class NoneHparams(Hparams):
    """There is nothing to choose."""


@register
class Unedited:
    """No edit at all. Its reliability says how much of the new facts the model would have said anyway."""

    spec: ClassVar[MethodSpec] = MethodSpec("none", "Unedited", "reference", version=1, edits=False)
    Hparams: ClassVar[type[Hparams]] = NoneHparams

    def __init__(self, hparams: NoneHparams) -> None:
        self.hparams = hparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """It needs nothing."""
        return {}

    def edit(
        self,
        model: "LoadedModel",
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """The model as it is; no phase is timed because nothing is done."""
        from methods.common.plain import PlainModel

        return PlainModel(model)
