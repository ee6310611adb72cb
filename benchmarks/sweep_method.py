"""Harness plug-in with a method that only sleeps, for cells of known duration."""

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
    """Number of the cell, to make cells distinct, and its duration."""

    number: int
    seconds: float


@register("sleeping", title="Sleeping", family="weights", version=1)
class Sleeping(Method):
    """Changes nothing; the warm-up edit, with a single request, does not sleep."""

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
