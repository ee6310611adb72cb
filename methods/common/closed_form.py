"""What ROME, MEMIT and similar methods share: hyper-parameters, artifacts, and the matrices that they change.

No torch at import: the plan reads hyper-parameters and artifacts.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, field_validator

from harness.api import Advance, ArtifactSpec, Context, EditedModel, Hparams, Method
from harness.errors import UserError
from harness.models.catalogue import ModelRef, entry
from harness.models.weights import InstalledWeights, Restorable
from harness.records import DataRef, EditRequest
from methods.common import moments, prefixes
from methods.common.moments import MomentHparams

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.loaded import LoadedModel
    from methods.common.rewrites import Rewrite
    from methods.common.solves import Factor

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
        target_tokens: `joint` with the prompt, or `alone` (see `rewrites.rewrite`).
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


class ClosedFormHparams(ValueHparams, MomentHparams):
    """Hyper-parameters of a value, and of the second moments of keys under which a matrix is changed to give it."""

    def artifacts(self, target: ModelRef, data: DataRef, seed: int) -> dict[str, ArtifactSpec]:
        """Context prefixes and, unless C is the identity, second moments of keys.

        Raises:
            UserError: where there is nothing to compute second moments from, or a layer that the model does not have.
        """
        n_layers = entry(target.name).n_layers
        if self.layers[-1] >= n_layers:
            raise UserError(
                f"{target.name} has {n_layers} layers, and the last of `layers` is {self.layers[-1]}",
                fix=f"layers: up to {n_layers - 1}",
            )
        needed = {"prefixes": prefixes.artifact(target, self.prefixes, seed)}
        if self.moments != "identity":
            needed["moments"] = moments.artifact(target, data, self.layers, self, seed)
        return needed


class ClosedFormMethod(Method):
    """Writes facts into feed-forward output matrices by closed-form updates; a subclass says which ones."""

    hparams: ClosedFormHparams

    def __init__(self, hparams: ClosedFormHparams) -> None:
        super().__init__(hparams)
        self.factors = moments.FactorCache()

    def artifacts(self, target: ModelRef, data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """As `ClosedFormHparams.artifacts`."""
        return self.hparams.artifacts(target, data, seed)

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Read what each request asks for, and write it into the matrices.

        Raises:
            UserError: naming the record, if one cannot be edited; the model is as it was.
        """
        from harness.models.edited import WeightEditedModel
        from methods.common.rewrites import rewrite

        front = prefixes.load(artifacts["prefixes"])
        factors: Mapping[int, Factor] = {}
        if "moments" in artifacts:
            factors = self.factors.of(artifacts["moments"], self.hparams.layers, model.device)
        matrices = ValueMatrices(model, self.hparams.layers)
        with (
            matrices.restored_on_error(),
            context.progress(self.spec.title, len(requests)) as advance,
            context.clock.phase("edit"),
        ):
            rewrites = [rewrite(model, request, front, self.hparams.target_tokens) for request in requests]
            diagnostics = self.write(model, matrices, rewrites, factors, advance)
        return WeightEditedModel(model, matrices.restore, diagnostics)

    @abstractmethod
    def write(
        self,
        model: "LoadedModel",
        matrices: "ValueMatrices",
        rewrites: Sequence["Rewrite"],
        factors: Mapping[int, "Factor"],
        advance: Advance,
    ) -> Mapping[str, float]:
        """Change the matrices so that the model says all facts.

        Args:
            model: with the matrices in it.
            matrices: to be added to.
            rewrites: the requests in ids, in their order.
            factors: of C, by layer; none where C is the identity.
            advance: called with the number of requests done.

        Returns:
            Diagnostics.
        """


class ValueMatrices(Restorable):
    """The value matrices of some layers, to be added to.

    In a half-precision model they are float32 until `restore`: a closed-form edit is smaller than the distance between
    neighbouring bfloat16 numbers in most entries and would be rounded away.

    Args:
        model: changed in place.
        layers: whose matrices.
    """

    def __init__(self, model: "LoadedModel", layers: Sequence[int]) -> None:
        from harness.models.precision import at_least_fp32

        wide = {}
        for layer in layers:
            path = model.path(model.layout.value_matrix, layer)
            for leaf, parameter in model.module(model.layout.value_matrix, layer).named_parameters():
                wide[f"{path}.{leaf}"] = at_least_fp32(parameter.detach())
        self._installed = InstalledWeights(model.model, wide)
        self._weights = {layer: model.value_matrix(layer)[1] for layer in layers}

    def add(self, layer: int, shift_KV: "Tensor") -> None:
        """Add the transpose of a shift, d_ff × d_model, to the matrix of a layer."""
        import torch

        weight_VK = self._weights[layer]
        with torch.no_grad():
            weight_VK.add_(shift_KV.T.to(weight_VK.dtype))

    def restore(self) -> None:
        """Every matrix as it was: the same object, the same bits, no cast. May be called again."""
        self._installed.restore()
