"""What methods share that continue from state of their own: `edit` as the first block of a sequence, and a count of edits.

No torch at import: the plan reads these classes.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import Context, EditedModel, Method, State
from harness.records import EditRequest

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.loaded import LoadedModel


class SequentialMethod(Method):
    """A method that keeps state next to the weights. Its first edit is one on top of nothing."""

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """`extend` from an empty state."""
        return self.extend(model, {}, requests, artifacts, context)

    @abstractmethod
    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """As `Method.extend`; `state` is empty for the first block of a sequence."""


@dataclass(frozen=True, slots=True)
class EditTally:
    """How the edits of a memory went, counted over all blocks of a sequence.

    Attributes:
        learned: edits that were trained.
        failed: edits that could not be.
        loss_sum: of those that were, each before its last step.
    """

    learned: int = 0
    failed: int = 0
    loss_sum: float = 0.0

    @classmethod
    def of(cls, state: State) -> "EditTally":
        """As it was when `state()` was taken; nothing counted yet if there is no state."""
        return cls(int(state["learned"]), int(state["failed"]), float(state["loss_sum"])) if state else cls()

    def state(self) -> "dict[str, Tensor]":
        """Three scalars."""
        import torch

        return {
            "learned": torch.tensor(self.learned),
            "failed": torch.tensor(self.failed),
            "loss_sum": torch.tensor(self.loss_sum, dtype=torch.float64),
        }

    def with_losses(self, losses: Iterable[float | None]) -> "EditTally":
        """With further edits, in their order; None for one that failed."""
        learned, failed, loss_sum = self.learned, self.failed, self.loss_sum
        for loss in losses:
            if loss is None:
                failed += 1
            else:
                learned, loss_sum = learned + 1, loss_sum + loss
        return EditTally(learned, failed, loss_sum)

    def diagnostics(self) -> Mapping[str, float]:
        """What `EditedModel.diagnostics` reports; at least one edit must have been trained."""
        return {"failed": float(self.failed), "final_loss": self.loss_sum / self.learned}
