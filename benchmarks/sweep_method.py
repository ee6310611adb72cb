"""A plug-in with a method whose edit is a pause, for cells of a known length."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import Context, EditedModel, Hparams, Method
from harness.records import EditRequest
from harness.registry import register

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel


class SleepingHparams(Hparams):
    """Which of many equal cells this is, and how long it takes."""

    number: int
    seconds: float


@register("sleeping", title="Sleeping", family="weights", version=1)
class Sleeping(Method):
    """Changes nothing. The warm-up edit, of a single request, takes no time."""

    Hparams = SleepingHparams
    hparams: SleepingHparams

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Sleep."""
        from harness.models.edited import WeightEditedModel

        with context.clock.phase("edit"):
            time.sleep(self.hparams.seconds if len(requests) > 1 else 0)
        return WeightEditedModel(model)
