"""Hyper-parameters of MEND: of the hypernetwork and its training, and of the edit."""

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.api import Hparams
from methods.common import Implementation


class HypernetworkHparams(Hparams):
    """What decides a trained hypernetwork; with model, data and seed its identity.

    Attributes:
        layers: blocks whose matrices are edited.
        matrices: names of the edited matrices inside the feed-forward module of a block.
        rank: of the two residual layers of each gradient transform.
        edit_lr: where the learned edit rate of each matrix starts. The update is *added*, so that a negative rate starts
            as gradient descent and a positive one has its sign to learn.
        lr, lr_of_edit_lr: of Adam, for the transforms and for the edit rates.
        c_edit, c_loc: weights of the edit loss and of the locality loss.
        train_batch: edits per optimiser step, each with an update of its own; their losses are summed.
        steps: upper limit of optimiser steps.
        clip: largest norm of the gradient.
        validation: train records that are held out.
        validate_every: steps between two looks at them; the best hypernetwork is kept.
        patience: training stops after as many steps without a better one.
        implementation: `corrected`: the edit loss reads a rephrase, both losses read the places that predict the answer.
            `faithful-easyedit`: the edit loss reads the prompt that was edited; targets are tokenised alone, so that a BOS
            or a lone `▁` is scored in front of them, and so is, with `batch_mean`, the padding of the shorter ones; the
            locality loss reads one place later.
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

    @model_validator(mode="after")
    def _at_least_one_look(self) -> Self:
        if self.validate_every > self.steps:
            raise ValueError(
                f"validate_every {self.validate_every} is more than steps {self.steps}: nothing would be kept"
            )
        return self


class MendHparams(HypernetworkHparams):
    """All choices of MEND; the values with their sources are in `methods/hparams/mend/`.

    Attributes:
        batch: edits per call. The updates of a call are computed on the same weights and added in one step.
        micro_batch: rows per backward pass; changes memory, and results only by rounding.
        inner_reduction: loss whose gradient is transformed. `batch_mean`: mean over the tokens of a call, so that the
            gradients shrink with its size while their normalisation was learned on single edits. `sum_of_example_means`:
            each edit as if it were alone.
    """

    batch: int = Field(ge=1)
    micro_batch: int = Field(ge=1)
    inner_reduction: Literal["batch_mean", "sum_of_example_means"]
