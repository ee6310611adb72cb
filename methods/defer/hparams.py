"""Hyper-parameters of DEFER."""

from typing import Literal

from pydantic import Field

from harness.api import Hparams


class DeferHparams(Hparams):
    """All choices of DEFER; the values with their sources are in `methods/hparams/defer/`.

    Attributes:
        layer: block whose second feed-forward matrix has the gate beside it.
        query: the token that gate and value read, in training and in use: the `prompt_last`, or, as EasyEdit has it, the
            `sequence_last`. The latter is the target's own last token in training and in teacher forcing, which so tells
            the gate the answer, and the last token so far where the answer is generated, each id on a text read anew.
        threshold: the gate from which on the value answers.
        lr: of Adam, which starts afresh for each request.
        steps: optimiser steps per request.
    """

    layer: int = Field(ge=0)
    query: Literal["prompt_last", "sequence_last"]
    threshold: float = Field(gt=0, lt=1)
    lr: float = Field(gt=0)
    steps: int = Field(ge=1)
