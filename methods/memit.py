"""MEMIT: many facts in one closed-form update of the feed-forward output matrices of several layers (Meng et al. 2023)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from harness.api import Advance, Context, EditedModel
from harness.records import EditRequest
from harness.registry import register
from methods.common.closed_form import ValueMatrices
from methods.common.layerwise import LayerwiseHparams, LayerwiseMethod, UpdateRule

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.loaded import LoadedModel
    from methods.common.rewrites import Rewrite
    from methods.common.solves import Factor


class MemitHparams(LayerwiseHparams):
    """Hyper-parameters of MEMIT, in addition to those shared by methods that spread an edit over several layers.

    Attributes:
        moment_weight: λ, the number of keys of the unedited model that weigh as much as one edit.
        norm_weight: weight of the squared Frobenius norm of an update (ENCORE, Gupta et al. 2025, arXiv 2502.01636), in the
            same units.
    """

    moment_weight: float = Field(gt=0)
    norm_weight: float = Field(0.0, ge=0)

    @property
    def regularisers(self) -> tuple[str, ...]:
        """See `ClosedFormHparams.regularisers`."""
        return (*super().regularisers, "norm_weight")


@register("memit", title="MEMIT", family="weights", version=2)
class Memit(LayerwiseMethod):
    """Reach the target with least-squares updates that also preserve the outputs for the keys of ordinary text.

    See `LayerwiseMethod` for the target. What is preserved is weighted by λ.
    """

    Hparams = MemitHparams
    hparams: MemitHparams

    @property
    def stiffer(self) -> str:
        """A larger λ."""
        return "a larger `moment_weight`"

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Apply `batch` requests at a time; the diagnostics are those of the last batch.

        The norm of an update weighs as much as the outputs for keys that point in all directions alike.
        """
        weight = self.hparams.moment_weight
        rule = _Preserving(self.covariances(artifacts, model.device, self.hparams.norm_weight / weight), weight)
        anchors = self.anchors(artifacts)

        def write(matrices: ValueMatrices, rewrites: "Sequence[Rewrite]", advance: Advance) -> dict[str, float]:
            written = self.write_layers(model, matrices, rewrites, rule, anchors, advance)
            return {"moment_tokens": self.factors.tokens, **written}

        return self.inserted(model, requests, artifacts, context, write)


@dataclass(frozen=True)
class _Preserving(UpdateRule):
    """MEMIT eq. 14, with the Cholesky factor of each layer's covariance and its weight λ."""

    factors: Mapping[int, "Factor"]
    weight: float

    def shift(self, layer: int, keys_NK: "Tensor", change_NV: "Tensor") -> "Tensor":
        from methods.common.solves import moment_ridge

        return moment_ridge(keys_NK, change_NV, self.factors[layer], self.weight)
