"""Per-row low-rank weight updates: each row of a batch sees its own update, applied in factored form."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from harness.models.routed import output_replaced


@dataclass(frozen=True, slots=True)
class LowRank:
    """An update Σ_r v_r k_rᵀ of a D × K matrix for each row of a batch.

    Attributes:
        keys_BRK: the k_r.
        values_BRD: the v_r; zero beyond a row's own rank.
    """

    keys_BRK: Tensor
    values_BRD: Tensor

    def added(self, inputs_BTK: Tensor, outputs_BTD: Tensor) -> Tensor:
        """Outputs of the updated matrix given those of the original one, in the dtype of the outputs.

        Costs T·R·(K + D) multiplications per row; forming the update explicitly would cost R·K·D.
        """
        agreement_BTR = inputs_BTK.to(self.keys_BRK.dtype) @ self.keys_BRK.mT
        return outputs_BTD + (agreement_BTR @ self.values_BRD).to(outputs_BTD.dtype)

    def total(self) -> Tensor:
        """Sum of all rows' updates as one D × K matrix."""
        return self.values_BRD.flatten(0, 1).mT @ self.keys_BRK.flatten(0, 1)

    def repeated(self, times: int) -> "LowRank":
        """The same updates for a batch that repeats its rows `times` times, one whole copy after another."""
        return LowRank(self.keys_BRK.repeat(times, 1, 1), self.values_BRD.repeat(times, 1, 1))


@contextmanager
def fast_weights(changes: Mapping[nn.Module, LowRank]) -> Iterator[None]:
    """Apply update b to row b of each module's batch inside the `with` block; gradients flow into the factors."""
    with ExitStack() as stack:
        for module, change in changes.items():
            stack.enter_context(output_replaced(module, change.added))
        yield
