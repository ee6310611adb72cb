"""ROME: rank-one updates of feed-forward output matrices, one fact at a time (Meng et al. 2022)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from harness.api import Advance, Context, EditedModel
from harness.errors import UserError
from harness.records import EditRequest
from harness.registry import register
from methods.common.closed_form import ClosedFormHparams, ClosedFormMethod, ValueMatrices
from methods.common.layers import count

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.loaded import LoadedModel
    from methods.common.rewrites import Rewrite
    from methods.common.solves import Factor

KeyMode = Literal["rome", "prompt", "prefix_mean"]


class RomeHparams(ClosedFormHparams):
    """Hyper-parameters of ROME, in addition to those of the value optimisation and the covariance statistics.

    Attributes:
        key_mode: keys that the update is computed from. `rome`, as published: the direction u comes from the mean key over
            contexts, the length from the plain prompt's key; where the two differ a lot, k·u approaches 0 and a single edit
            can destroy the model. `prompt` and `prefix_mean`: the same key in both places (r-ROME, Gupta et al. 2024,
            arXiv 2403.07175).
        norm_weight: weight of the squared Frobenius norm of an update next to that of the mean change of the outputs for
            ordinary keys (the norm constraint of ENCORE, Gupta et al. 2025, arXiv 2502.01636).
    """

    key_mode: KeyMode
    norm_weight: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _norm_has_a_counterweight(self) -> Self:
        if self.norm_weight and self.moments == "identity":
            raise ValueError(
                "norm_weight changes nothing with moments: identity, where an update has the least norm anyway"
            )
        return self

    @property
    def regularisers(self) -> tuple[str, ...]:
        """See `ClosedFormHparams.regularisers`."""
        return (*super().regularisers, "norm_weight")

    @property
    def passes_per_edit(self) -> float:
        """A value for each layer."""
        return super().passes_per_edit * count(self.layers)

    @property
    def steps_per_edit(self) -> float:
        """Facts are written one by one."""
        return self.v_steps * count(self.layers)


@register("rome", title="ROME", family="weights", version=3)
class Rome(ClosedFormMethod):
    """Optimise the output of a matrix W at the subject's last token, then add the rank-one update that produces it.

    Edits are applied sequentially, and so are layers: each value is optimised on the weights left by all previous updates.
    The value is the output of W, before the norm that Gemma 2 and 3 and OLMo 2 apply to it; so the update is exact there. It
    keeps its length, which that norm ignores (up to ε): an optimiser never shortens it, because the gradient is perpendicular
    to it, and a longer one would change the outputs for all other keys more.
    """

    Hparams = RomeHparams
    hparams: RomeHparams

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Write one fact at a time; the diagnostic is the mean probability of a target token under the optimised vectors."""
        factors = self.covariances(artifacts, model.device, self.hparams.norm_weight)
        anchors = self.anchors(artifacts)

        def write(matrices: ValueMatrices, rewrites: "Sequence[Rewrite]", advance: Advance) -> dict[str, float]:
            probabilities = []
            for made in rewrites:
                probabilities.append(self._write_one(model, matrices, factors, anchors, made))
                advance()
            return {"value_probability": sum(probabilities) / len(probabilities)} if probabilities else {}

        return self.inserted(model, requests, artifacts, context, write)

    def _write_one(
        self,
        model: "LoadedModel",
        matrices: ValueMatrices,
        factors: Mapping[int, "Factor"],
        anchors: Mapping[int, float],
        made: "Rewrite",
    ) -> float:
        """Write one fact, layer by layer; return the probability of its target under the last layer's value."""
        from methods.common.aligned import advance, enter
        from methods.common.values import rescaled, solve

        layers = self.hparams.layers
        stream, at, probability = enter(model, made.rows, layers[0]), layers[0], 0.0
        for layer in layers:
            stream = advance(model, stream, at, layer)
            at = layer
            _, went, value = solve(model, [made], stream, layer, self.hparams, self.hparams.scale)
            value_V, delta_V = went.values_BV[0], value.delta_ND[0]
            if anchors:
                delta_V = rescaled(value_V, delta_V, anchors[layer])
            elif model.layout.value_norm is not None:
                delta_V = rescaled(value_V, delta_V, value_V.double().norm())
            contexts = len(made.contexts)
            shift_KV = rank_one(
                went.keys_BK[:contexts],
                went.values_BV[:contexts],
                delta_V,
                factors.get(layer),
                self.hparams.key_mode,
            )
            if not bool(shift_KV.isfinite().all()):
                raise UserError(
                    f"record {made.record_id}: the update of layer {layer} is not a number", fix="key_mode: prefix_mean"
                )
            matrices.add(layer, shift_KV)
            probability = value.probability
        return probability


def rank_one(
    keys_CK: "Tensor",
    values_CV: "Tensor",
    delta_V: "Tensor",
    moment: "Factor | None",
    key_mode: KeyMode,
) -> "Tensor":
    """Rank-one update u Λᵀ under which W maps the key to v + δ (ROME eq. 2), u = C⁻¹k / ‖C⁻¹k‖ and Λ = (v* - W k) / (k·u).

    Args:
        keys_CK: keys at the subject's last token: of the plain prompt, then after each prefix.
        values_CV: outputs of W for these keys.
        delta_V: δ, optimised on top of the plain prompt's value.
        moment: factor of the covariance C; None for the identity.
        key_mode: which key u is computed from, and which one is mapped (see `RomeHparams`).

    Returns:
        K × V in float64, of rank one.
    """
    import torch

    keys_CK, values_CV = keys_CK.double(), values_CV.double()
    mean_K, plain_K = keys_CK.mean(0), keys_CK[0]
    toward_K = plain_K if key_mode == "prompt" else mean_K
    u_K = toward_K if moment is None else moment.divide(toward_K[None])[0]
    u_K = u_K / u_K.norm()
    if key_mode == "prefix_mean":
        mapped_K, change_V = mean_K, values_CV[0] + delta_V - values_CV.mean(0)
    else:
        mapped_K, change_V = plain_K, delta_V.double()
    return torch.outer(u_K, change_V / (mapped_K @ u_K))
