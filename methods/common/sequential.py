"""Base class of methods that carry state from block to block of a sequence, and a tally of their edits.

Does not import torch, because planning needs these classes.
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
    """A method that keeps state in addition to the weights; the first edit continues from an empty state."""

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Call `extend` with an empty state."""
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
        """See `Method.extend`; `state` is empty for the first block of a sequence."""


@dataclass(frozen=True, slots=True)
class EditTally:
    """Outcome counts of a memory method's edits over all blocks of a sequence.

    Attributes:
        learned: number of edits trained successfully.
        failed: number of edits that could not be trained.
        loss_sum: sum of the losses of the trained edits, each before its last step.
    """

    learned: int = 0
    failed: int = 0
    loss_sum: float = 0.0

    @classmethod
    def of(cls, state: State) -> "EditTally":
        """Restore the tally from `state()`; all zeros if the state is empty."""
        return cls(int(state["learned"]), int(state["failed"]), float(state["loss_sum"])) if state else cls()

    def state(self) -> "dict[str, Tensor]":
        """The tally as three scalar tensors."""
        import torch

        return {
            "learned": torch.tensor(self.learned),
            "failed": torch.tensor(self.failed),
            "loss_sum": torch.tensor(self.loss_sum, dtype=torch.float64),
        }

    def with_losses(self, losses: Iterable[float | None]) -> "EditTally":
        """The tally after further edits, given their losses in order; None marks a failed edit."""
        learned, failed, loss_sum = self.learned, self.failed, self.loss_sum
        for loss in losses:
            if loss is None:
                failed += 1
            else:
                learned, loss_sum = learned + 1, loss_sum + loss
        return EditTally(learned, failed, loss_sum)

    def diagnostics(self) -> Mapping[str, float]:
        """Values for `EditedModel.diagnostics`; at least one edit must have been trained."""
        return {"failed": float(self.failed), "final_loss": self.loss_sum / self.learned}
