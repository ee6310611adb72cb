"""How the edits of a memory went, counted over all blocks of a sequence."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from harness.api import State


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts that go on where an earlier block left them.

    Attributes:
        learned: edits that were trained.
        failed: edits that could not be.
        loss_sum: of those that were, each before its last step.
    """

    learned: int = 0
    failed: int = 0
    loss_sum: float = 0.0

    @classmethod
    def kept(cls, state: State) -> "Tally":
        """As it was when `state()` was taken."""
        return cls(int(state["learned"]), int(state["failed"]), float(state["loss_sum"]))

    def state(self) -> dict[str, torch.Tensor]:
        """Three scalars."""
        return {
            "learned": torch.tensor(self.learned),
            "failed": torch.tensor(self.failed),
            "loss_sum": torch.tensor(self.loss_sum, dtype=torch.float64),
        }

    def with_losses(self, losses: Iterable[float | None]) -> "Tally":
        """With further edits, in their order; None for one that failed."""
        learned, failed, loss_sum = self.learned, self.failed, self.loss_sum
        for loss in losses:
            if loss is None:
                failed += 1
            else:
                learned, loss_sum = learned + 1, loss_sum + loss
        return Tally(learned, failed, loss_sum)

    def figures(self) -> Mapping[str, float]:
        """What `diagnostics` reports; at least one edit must have been trained."""
        return {"failed": float(self.failed), "final_loss": self.loss_sum / self.learned}
