"""Hyper-parameters of FT-L."""

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.api import Hparams


class FtLHparams(Hparams):
    """All choices of FT-L; the values with their sources are in `methods/hparams/ft-l/`.

    Attributes:
        layer: block whose feed-forward output matrix W is trained.
        lr, weight_decay: of Adam, which starts afresh in each call.
        steps: upper limit of optimiser steps per call.
        batch: edits per call; calls follow one another on the same weights (the paper: five of 200).
        micro_batch: rows per backward pass; changes memory, and results only by rounding.
        norm_constraint: W stays within this L∞ distance of its value at the start of the call, in fp32; None for no bound.
        objective: `prompt_last` scores all target tokens at the last prompt position, `target_new` each behind those
            before it.
        loss_stop: a call ends when its mean loss falls below this.
        implementation: `corrected`, or `faithful-easyedit` with what `rows.as_easyedit` describes and, on GPT-J, the
            bias beside W, which EasyEdit's search for names finds as well.
    """

    layer: int = Field(ge=0)
    lr: float = Field(gt=0)
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    micro_batch: int = Field(ge=1)
    norm_constraint: float | None = Field(gt=0)
    objective: Literal["prompt_last", "target_new"]
    weight_decay: float = Field(ge=0)
    loss_stop: float = Field(ge=0)
    implementation: Literal["corrected", "faithful-easyedit"] = "corrected"

    @model_validator(mode="after")
    def _faithful_to_one_objective(self) -> Self:
        if self.implementation == "faithful-easyedit" and self.objective != "prompt_last":
            raise ValueError("implementation 'faithful-easyedit' is of objective 'prompt_last' only")
        return self
