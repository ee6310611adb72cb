"""Hyper-parameters of MEND: the hypernetwork, its training, and the edit."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from harness.api import Hparams
from methods.common import Implementation


class HypernetworkHparams(Hparams):
    """Everything that determines a trained hypernetwork; together with model, data and seed, its identity.

    Attributes:
        layers: blocks whose matrices are edited.
        matrices: names of the edited matrices inside the feed-forward module of a block.
        rank: of the two residual layers of each gradient transform.
        edit_lr: initial value of the learned edit rate of each matrix. The update is *added*, so a negative rate starts
            out as gradient descent, whereas a positive rate has to learn its sign.
        lr, lr_of_edit_lr: Adam learning rates of the transforms and of the edit rates.
        c_edit, c_loc: weights of the edit loss and the locality loss.
        train_batch: edits per optimiser step, each with its own update; their losses are summed.
        steps: maximum number of optimiser steps.
        clip: maximum gradient norm.
        validation: maximum number of train records held out for validation. Of few records, a fifth is held out, so that most
            of them are learned from.
        validate_every: steps between validations; the best hypernetwork is kept.
        patience: stop after this many steps without improvement.
        implementation: `corrected`: the edit loss is computed on a rephrase, and both losses at the positions that predict
            the answer. `faithful-easyedit`: the edit loss is computed on the edited prompt; targets are tokenised on their
            own, so a leading BOS or lone `▁` is scored too, as is the padding of shorter targets with `batch_mean`; the
            locality loss is read one position late.
    """

    layers: tuple[int, ...] = Field(min_length=1)
    matrices: tuple[str, ...] = Field(min_length=1)
    rank: int = Field(ge=1)
    edit_lr: float
    lr: float = Field(gt=0)
    lr_of_edit_lr: float = Field(gt=0)
    c_edit: float = Field(gt=0)
    c_loc: float = Field(ge=0)
    train_batch: int = Field(ge=1)
    steps: int = Field(ge=1)
    clip: float = Field(gt=0)
    validation: int = Field(ge=1)
    validate_every: int = Field(ge=1)
    patience: int = Field(ge=1)
    implementation: Implementation

    def held_out(self, examples: int) -> int:
        """How many of so many train records are held out: at least one."""
        return max(1, min(self.validation, examples // 5))

    @model_validator(mode="after")
    def _at_least_one_look(self) -> Self:
        if self.validate_every > self.steps:
            raise ValueError(
                f"validate_every {self.validate_every} is more than steps {self.steps}: nothing would be kept"
            )
        return self


class MendHparams(HypernetworkHparams):
    """All hyper-parameters of MEND; values and their sources are in `methods/hparams/mend/`.

    Attributes:
        batch: edits per update. All updates of a batch are computed on the same weights and added in one step.
        micro_batch: rows per backward pass; affects memory, and results only by rounding.
        inner_reduction: the loss whose gradient is transformed. `batch_mean`: mean over all tokens of the batch, so the
            gradients shrink as the batch grows although their normalisation was learned on single edits.
            `sum_of_example_means`: each edit as if it were the only one.
        rounds: updates per batch, each computed at the weights left by the previous ones (multi-step backpropagation of
            EMSEdit, arXiv 2508.04012); the hypernetwork is trained for single ones.
    """

    batch: int = Field(ge=1)
    micro_batch: int = Field(ge=1)
    inner_reduction: Literal["batch_mean", "sum_of_example_means"]
    rounds: int = Field(1, ge=1)

    @property
    def passes_per_edit(self) -> float:
        """One gradient per round; the hypernetwork is an artifact."""
        return 3.0 * self.rounds

    def identity(self) -> dict[str, Any]:
        """All values; `rounds` only if there are several."""
        return {name: value for name, value in super().identity().items() if name != "rounds" or value > 1}
