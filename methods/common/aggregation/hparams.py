"""Hyper-parameters of methods that aggregate changes by least squares. Does not import torch, because planning needs them."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from harness.api import Hparams
from methods.common import require_layers, require_matrices

if TYPE_CHECKING:
    from torch import nn

    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel


class EditedHparams(Hparams):
    """Edited matrices and number of rounds.

    Attributes:
        layers: blocks whose matrices are edited; negative numbers count from the last.
        matrices: names of the edited matrices inside the feed-forward module of these blocks.
        further: further matrices by name, each with its blocks.
        rounds: backpropagations per batch, each at the weights left by the previous ones (multi-step backpropagation, MSBP, of
            EMSEdit).
        micro_batch: rows per backward pass; affects memory, and results only by rounding.
    """

    layers: tuple[int, ...] = Field(min_length=1)
    matrices: tuple[str, ...] = Field(min_length=1)
    further: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    rounds: int = Field(ge=1)
    micro_batch: int = Field(ge=1)

    @property
    def passes_per_edit(self) -> float:
        """One gradient per round."""
        return 3.0 * self.rounds

    @property
    def blocks(self) -> tuple[int, ...]:
        """All blocks with an edited matrix."""
        return tuple(dict.fromkeys([*self.layers, *(layer for layers in self.further.values() for layer in layers)]))

    def lowest_block(self, n_layers: int) -> int:
        """The first block with an edited matrix, counted from 0."""
        return min(layer % n_layers for layer in self.blocks)

    @property
    def n_matrices(self) -> int:
        """Number of edited matrices."""
        return len(self.layers) * len(self.matrices) + sum(map(len, self.further.values()))

    def require_known(self, target: "ModelRef") -> None:
        """Check the names and blocks of the matrices.

        Raises:
            UserError: if the model does not have them.
        """
        require_matrices(target, (*self.matrices, *self.further))
        require_layers(target, self.blocks)

    def modules(self, model: "LoadedModel") -> "dict[str, nn.Module]":
        """The edited linear modules, keyed by the name of their weight."""
        from methods.common.factors import edited_modules

        modules = edited_modules(model, self.layers, self.matrices)
        for name, layers in self.further.items():
            modules |= edited_modules(model, layers, [name])
        return modules


class ShiftHparams(EditedHparams):
    """Everything that determines a trained hypernetwork; together with model, data and seed, its identity.

    Attributes:
        rank: of the residual layers of each gradient transform; with a network for each round, round i has rank / i.
        blocks_of_network: number of residual layers.
        edit_lr: initial value of the learned edit rate of each matrix.
        lr: learning rate of Adam.
        clip: maximum gradient norm.
        norm_weight: weight of the squared Frobenius norm of all shifts in the loss.
        loc_weight: weight of KL(unedited ‖ edited) on locality probes; 0 saves the passes for it.
        train_batch: edits per batch.
        train_batches: batches of a sequence with `mode: sequence`, otherwise batches that are trained on one after another; null
            for as many as make one pass over the train records.
        steps: passes over these batches.
        mode: `batch`: every round of training starts from the unedited weights and ends with an optimiser step; all rounds
            share a network. `sequence`: shifts accumulate over rounds and batches, each round has a network of its own, and an
            optimiser step follows at the end of the sequence.
    """

    rank: int = Field(ge=1)
    blocks_of_network: int = Field(ge=1)
    edit_lr: float = Field(gt=0)
    lr: float = Field(gt=0)
    clip: float = Field(gt=0)
    norm_weight: float = Field(ge=0)
    loc_weight: float = Field(ge=0)
    train_batch: int = Field(ge=1)
    train_batches: int | None = Field(ge=1)
    steps: int = Field(ge=1)
    mode: Literal["batch", "sequence"]

    def batches(self, examples: int) -> tuple[int, int]:
        """Number and size of the batches of a pass.

        Args:
            examples: number of train records. One pass takes them in batches of equal size, and so leaves out fewer records than
                there are batches.
        """
        if self.train_batches is not None:
            return self.train_batches, min(self.train_batch, examples)
        number = -(-examples // self.train_batch)
        return number, examples // number

    @property
    def ranks(self) -> tuple[int, ...]:
        """Rank of each network."""
        if self.mode == "batch":
            return (self.rank,)
        return tuple(max(1, self.rank // (number + 1)) for number in range(self.rounds))


class AggregationHparams(ShiftHparams):
    """All hyper-parameters of a method with a hypernetwork.

    Attributes:
        batch: edits per update; successive updates accumulate in the same weights.
    """

    batch: int = Field(ge=1)
