"""Weights that differ from row to row of a batch: changes of low rank, applied as factors and never written out."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from harness.models.routed import output_replaced


@dataclass(frozen=True, slots=True)
class LowRank:
    """A change Σ_r v_r k_rᵀ of a D × K matrix, one for each row of a batch.

    Attributes:
        keys_BRK: what an input is compared with.
        values_BRD: what is added to the output for each unit of agreement. A row with fewer than R terms has zeros here.
    """

    keys_BRK: Tensor
    values_BRD: Tensor

    def added(self, inputs_BTK: Tensor, outputs_BTD: Tensor) -> Tensor:
        """Outputs of the changed matrix, from inputs and outputs of the unchanged one, in the precision of these.

        Costs T·R·(K + D) multiplications per row where the change itself has R·K·D.
        """
        agreement_BTR = inputs_BTK.to(self.keys_BRK.dtype) @ self.keys_BRK.mT
        return outputs_BTD + (agreement_BTR @ self.values_BRD).to(outputs_BTD.dtype)

    def total(self) -> Tensor:
        """The changes of all rows in one matrix, D × K."""
        return self.values_BRD.flatten(0, 1).mT @ self.keys_BRK.flatten(0, 1)

    def repeated(self, times: int) -> "LowRank":
        """The same changes for a batch that holds its rows several times over, one whole batch after the other."""
        return LowRank(self.keys_BRK.repeat(times, 1, 1), self.values_BRD.repeat(times, 1, 1))


@contextmanager
def fast_weights(changes: Mapping[nn.Module, LowRank]) -> Iterator[None]:
    """Inside the body each linear module answers row b of its batch with change b; gradients flow into the factors."""
    with ExitStack() as stack:
        for module, change in changes.items():
            stack.enter_context(output_replaced(module, change.added))
        yield
