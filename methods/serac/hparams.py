"""Hyper-parameters of SERAC. Does not import torch, because planning needs them."""

from typing import Any

from pydantic import Field

from harness.api import Hparams
from harness.suite.schema import ModelForm

TRAINING = ("width", "lr", "batch", "steps", "exchanged", "clip", "validation", "validate_every", "patience")
"""The keys that decide the two networks; together with the small model, the train records and the seed, their identity."""


class SeracHparams(Hparams):
    """All hyper-parameters of SERAC; values and their sources are in `methods/hparams/serac/`.

    Attributes:
        counterfactual: the small model that both networks start from: a catalogue name, or an entry as under `models`.
        width: dimensions of the space in which the scope classifier compares texts.
        lr: learning rate of Adam, for both networks.
        batch: edits per optimiser step, each with one question in its scope and one outside.
        steps: maximum number of optimiser steps.
        exchanged: share of edits that get the target of another record in each step, so that few records do not teach the
            counterfactual model their own targets by heart.
        clip: maximum gradient norm of each network.
        validation: number of train records held out for validation.
        validate_every: steps between validations; each network is kept as it was at its best.
        patience: training ends when neither network has improved for this many steps.
        threshold: a prompt whose most similar edit has at least this probability is in its scope.
        edit_tokens: most tokens of an edit that the counterfactual model reads.
    """

    counterfactual: str | ModelForm
    width: int = Field(ge=1)
    lr: float = Field(gt=0)
    batch: int = Field(ge=2)
    steps: int = Field(ge=1)
    exchanged: float = Field(ge=0, le=1)
    clip: float = Field(gt=0)
    validation: int = Field(ge=1)
    validate_every: int = Field(ge=1)
    patience: int = Field(ge=1)
    threshold: float = Field(gt=0, le=1)
    edit_tokens: int = Field(ge=1)

    @property
    def passes_per_edit(self) -> float:
        """None through the target model; the encoder reads the prompt once."""
        return 0.0

    @property
    def entry(self) -> ModelForm:
        """The small model as an entry, from either notation."""
        return ModelForm.model_validate(self.counterfactual)

    def identity(self) -> dict[str, Any]:
        """All values, with the small model's name only: its files are in the identity of the networks."""
        return {**super().identity(), "counterfactual": self.entry.name}
