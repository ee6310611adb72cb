"""Hyper-parameters of GRACE."""

from typing import Literal

from pydantic import Field

from harness.api import Hparams


class GraceHparams(Hparams):
    """All choices of GRACE; the values with their sources are in `methods/hparams/grace/`.

    Attributes:
        layer: block whose second feed-forward matrix has the codebook beside it.
        distance: between keys: `euclidean` as in the paper, or `cosine`, 1 - cos.
        radius: ε of a new key: how far a prompt may lie from it and still be answered by its value.
        expand: what a prompt with the label of its nearest key, but outside its radius, does to the key: `coverage`
            widens the radius to reach it, `moving_average` also moves the key half the way.
        start: a new value is `cold`, uniform in [0, 1), or `warm`, what the matrix gives.
        replace: the value stands in for the matrix at the `last` token of the prompt, or at all of the `prompt` before it.
        lr: of Adam, which starts afresh for each request.
        steps: optimiser steps per request.
        batch: requests that are read or trained side by side; changes memory, and results only by rounding.
        implementation: `corrected` compares targets id by id, and takes a prompt that returns with another target for a
            new edit of the same row. `faithful-easyedit` compares mean labels, of the wrong row as soon as there are
            two (see `codebook`), and adds a row for such a prompt that not even the prompt itself reaches.
    """

    layer: int = Field(ge=0)
    distance: Literal["euclidean", "cosine"]
    radius: float = Field(gt=0)
    expand: Literal["coverage", "moving_average"]
    start: Literal["cold", "warm"]
    replace: Literal["last", "prompt"]
    lr: float = Field(gt=0)
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    implementation: Literal["corrected", "faithful-easyedit"]
