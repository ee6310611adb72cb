"""A method whose edit is a pause: cells of a known length. Found by `HARNESS_METHODS=benchmarks.sleeping`."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.records import DataRef, EditRequest
from methods.base import ArtifactSpec, Context, EditedModel, Hparams, MethodSpec
from methods.registry import register

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel


class SleepingHparams(Hparams):
    """Which of many like cells this is, and how long it takes."""

    number: int
    seconds: float


@register
class Sleeping:
    """Changes nothing. The warm-up edit, of a single request, is not slept through."""

    spec: ClassVar[MethodSpec] = MethodSpec("sleeping", "Sleeping", family="weights", version=1)
    Hparams: ClassVar[type[Hparams]] = SleepingHparams

    def __init__(self, hparams: SleepingHparams) -> None:
        self.hparams = hparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """None."""
        return {}

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Sleep."""
        from methods.common.plain import PlainModel

        with context.clock.phase("edit"):
            time.sleep(self.hparams.seconds if len(requests) > 1 else 0)
        return PlainModel(model)
