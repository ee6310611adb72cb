"""Hyper-parameters that ROME, MEMIT and their kin share: how a new value is found. No torch."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from harness.api import Hparams
from harness.errors import UserError
from harness.models.catalogue import ModelRef, entry

TargetTokens = Literal["joint", "alone"]


class ValueHparams(Hparams):
    """How the vector at the subject's last token is optimised (ROME eq. 4).

    Attributes:
        layers: blocks that are edited, in ascending order.
        v_lr: learning rate of Adam.
        v_steps: losses that are computed at most; one step fewer is made.
        v_weight_decay: penalty on ‖δ‖ / scale², scale being the norm of what δ is added to.
        v_clamp: ‖δ‖ is at most this many times the scale.
        v_loss_stop: an optimisation ends below this loss.
        kl_weight: penalty on the change of what follows the bare subject.
        prefixes: groups of context prefixes: length in tokens, number per first word (of five).
        target_tokens: `joint` with the prompt, or `alone` as in EasyEdit (see `rewrites.rewrite`).
    """

    layers: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    v_lr: float = Field(gt=0)
    v_steps: int = Field(ge=1)
    v_weight_decay: float = Field(ge=0)
    v_clamp: float = Field(gt=0)
    v_loss_stop: float = Field(ge=0)
    kl_weight: float = Field(ge=0)
    prefixes: tuple[tuple[int, int], ...]
    target_tokens: TargetTokens

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: tuple[int, ...]) -> tuple[int, ...]:
        if list(layers) != sorted(set(layers)):
            raise ValueError("layers must ascend")
        return layers

    def require_layers(self, target: ModelRef) -> None:
        """Check that a model has the layers.

        Raises:
            UserError: if it does not.
        """
        n_layers = entry(target.name).n_layers
        if self.layers[-1] >= n_layers:
            raise UserError(
                f"{target.name} has {n_layers} layers, and the last of `layers` is {self.layers[-1]}",
                fix=f"layers: up to {n_layers - 1}",
            )
