"""One round of an edit: gradients of a batch, desired changes at its target tokens, and one least-squares shift per matrix."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from harness.models.batching import length_sorted
from harness.models.linear import weight_of
from harness.models.loaded import LoadedModel
from harness.models.routed import output_replaced
from harness.models.submodels import Streams, streams_of
from methods.common import Implementation
from methods.common.aggregation.hparams import EditedHparams
from methods.common.aggregation.network import Changes, in_chunks
from methods.common.factors import GradientFactors, factors_of, places_of
from methods.common.prediction import PredictionRow, padded
from methods.common.solves import ridge
from methods.common.transforms import EditedMatrix

Shifts = Mapping[str, Tensor]
"""Shift S of each matrix by weight name, K × D: the matrix changes by Sᵀ."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """The gradient of a batch's loss at its N target tokens, for one matrix.

    Attributes:
        keys_NK: inputs of the matrix.
        gradients_ND: gradients with respect to its outputs.
    """

    keys_NK: Tensor
    gradients_ND: Tensor


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows of a micro-batch at the input of the lowest edited block, which no edit changes."""

    rows: Sequence[PredictionRow]
    entering: Streams


class Rounds:
    """The edited matrices of a model, and how a batch of edits becomes shifts of them.

    Args:
        model: frozen; its weights are not changed here.
        hparams: which matrices are edited.
    """

    implementation: ClassVar[Implementation] = "corrected"

    def __init__(self, model: LoadedModel, hparams: EditedHparams) -> None:
        self.model, self.micro_batch = model, hparams.micro_batch
        self.modules = hparams.modules(model)
        self.layer = hparams.lowest_block(model.n_layers)
        self.matrices = tuple(
            EditedMatrix(name, *reversed(weight_of(module).shape)) for name, module in self.modules.items()
        )

    def prepare(self, rows: Sequence[PredictionRow]) -> list[Prepared]:
        """Split rows into micro-batches of similar length, and run the blocks below the edited ones."""
        made = []
        for chosen in length_sorted(rows, lambda row: len(row.ids), self.micro_batch):
            made.append(self.entered([rows[index] for index in chosen]))
        return made

    def entered(self, rows: Sequence[PredictionRow]) -> Prepared:
        """Run the blocks below the edited ones on a micro-batch."""
        return Prepared(rows, streams_of(self.model, padded(rows, self.model.device), self.layer))

    def factors(self, part: Prepared) -> dict[str, GradientFactors]:
        """Backpropagate the sum over edits of the mean loss of their target tokens, to all of these tokens."""
        alone_B = torch.ones(len(part.rows), device=self.model.device)
        read = places_of(part.rows)
        return factors_of(self.model, self.modules, part.entering, self.layer, part.rows, alone_B, read)

    def gather(self, batch: Sequence[Prepared], network: Changes) -> dict[str, Gathered]:
        """Backpropagate the loss of each micro-batch, and let the network observe the gradients."""
        found: dict[str, list[GradientFactors]] = {matrix.name: [] for matrix in self.matrices}
        for part in batch:
            seen = self.factors(part)
            network.observe(seen)
            for name, factors in seen.items():
                found[name].append(factors)
        return {
            name: Gathered(
                torch.cat([part.inputs_NK for part in parts]), torch.cat([part.gradients_ND for part in parts])
            )
            for name, parts in found.items()
        }

    def shifts(self, gathered: Mapping[str, Gathered], network: Changes) -> dict[str, Tensor]:
        """The least-squares shift of each matrix for the desired changes (MALMEN eq. 5), in float64."""
        shifts = {}
        for index, matrix in enumerate(self.matrices):
            seen = gathered[matrix.name]
            wanted_ND = in_chunks(network, index, seen.keys_NK, seen.gradients_ND)
            shifts[matrix.name] = ridge(seen.keys_NK, wanted_ND, network.ridge(index))
        return shifts

    @contextmanager
    def shifted(self, shifts: Shifts) -> Iterator[None]:
        """Compute with shifted matrices inside the body, without changing them; gradients flow into the shifts."""
        with ExitStack() as stack:
            for name, shift_KD in shifts.items():
                stack.enter_context(output_replaced(self.modules[name], partial(_added, shift_KD)))
            yield


def _added(shift_KD: Tensor, inputs_BTK: Tensor, outputs_BTD: Tensor) -> Tensor:
    return outputs_BTD + (inputs_BTK.to(shift_KD.dtype) @ shift_KD).to(outputs_BTD.dtype)


def add(modules: Mapping[str, nn.Module], shifts: Shifts) -> None:
    """Change the matrices for good."""
    with torch.no_grad():
        for name, shift_KD in shifts.items():
            weight_DK = weight_of(modules[name])
            weight_DK.add_(shift_KD.T.to(weight_DK))
