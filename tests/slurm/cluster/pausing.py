"""A method that waits for as long as a test wants, says when, and then changes weights so that its cell is like no other.

It lies outside of `methods/` on purpose: jobs find it as they find anybody's, by `HARNESS_PLUGINS=pausing`. In the folder
`PAUSING` of the environment a test finds `<number>.begun.…` and `<number>.ended.…` of each edit; while there is a file
`hold-<number>` in it, edits of that cell wait, but for as many as the file says. A warm-up edit is of one request and passes.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import Context, EditedModel, Hparams, Method
from harness.records import EditRequest
from harness.registry import register
from harness.run.heartbeat import job_id

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel


class PausingHparams(Hparams):
    """What tells one of its cells from another, and how long an edit sleeps."""

    number: int = 0
    seconds: float = 0


@register("pausing", title="Pausing", family="weights", version=1)
class Pausing(Method):
    """Noise on one matrix, after a pause."""

    Hparams = PausingHparams
    hparams: PausingHparams

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Wait, then add noise that follows from the seed and the cell's number."""
        import torch

        from harness.models.edited import WeightEditedModel
        from harness.models.weights import Snapshot

        if len(requests) > 1:
            self._pause()
        name, weight = model.value_matrix(-1)
        snapshot = Snapshot(model.model, [name])
        generator = torch.Generator().manual_seed(1000 * context.seed + self.hparams.number)
        with context.clock.phase("edit"), torch.no_grad():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
        return WeightEditedModel(model, on_revert=snapshot.restore)

    def _pause(self) -> None:
        if "PAUSING" in os.environ:
            folder, number = Path(os.environ["PAUSING"]), self.hparams.number
            mark = f"{job_id() or 'here'}.{os.getpid()}.{time.time_ns()}"
            (folder / f"{number}.begun.{mark}").touch()
            while _is_held(folder, number):
                time.sleep(0.05)
            (folder / f"{number}.ended.{mark}").touch()
        time.sleep(self.hparams.seconds)


def _is_held(folder: Path, number: int) -> bool:
    try:
        pass_first = int((folder / f"hold-{number}").read_text())
    except FileNotFoundError:
        return False
    return len(list(folder.glob(f"{number}.ended.*"))) >= pass_first
