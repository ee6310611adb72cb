"""The AlphaEdit method: MEMIT's targets, and updates that preserve the outputs for pretraining keys and earlier edits."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from harness.api import Advance, ArtifactSpec, Context, EditedModel, State
from harness.memory import FP32, FP64, Memory
from harness.records import DataRef, EditRequest
from harness.registry import register
from methods.common import require_masks
from methods.common.closed_form import ValueMatrices
from methods.common.layers import count
from methods.common.layerwise import LayerwiseHparams, LayerwiseMethod
from methods.common.sequential import SequentialMethod

if TYPE_CHECKING:
    import torch

    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel
    from methods.alphaedit.null_space import NullSpace
    from methods.common.rewrites import Rewrite

VERSION = 1
"""Increment when other null spaces are built from the same statistics."""

ROLE = "null-space"


class AlphaEditHparams(LayerwiseHparams):
    """Hyper-parameters of AlphaEdit, in addition to those shared by methods that spread an edit over several layers.

    Attributes:
        null_threshold: directions along which the mean square of the keys is less than this make up the null space. It is
            absolute, as published, so that what remains depends on the scale of the keys; the diagnostics say how much.
        norm_weight: weight of the squared Frobenius norm of an update (`L2` in AlphaEdit's code).
    """

    null_threshold: float = Field(gt=0)
    norm_weight: float = Field(gt=0)


@register("alphaedit", title="AlphaEdit", family="weights", version=1)
class AlphaEdit(LayerwiseMethod, SequentialMethod):
    """Reach MEMIT's target with updates projected onto the null space of the covariance of ordinary keys.

    An update minimises the error on the new keys, its own norm and the change of the outputs for the keys of earlier edits
    (AlphaEdit eq. 12). Those keys are the method's state, so that later blocks of a sequence protect earlier ones.
    """

    Hparams = AlphaEditHparams
    hparams: AlphaEditHparams

    def __init__(self, hparams: AlphaEditHparams) -> None:
        super().__init__(hparams)
        self._loaded: dict[tuple[Path, str], dict[int, NullSpace]] = {}

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """Context prefixes and the null space of each layer, which is computed from the covariance statistics.

        Raises:
            UserError: as for MEMIT.
        """
        require_masks(target, self.spec.name)
        needed = self.hparams.artifacts(target, data, seed)
        moments, model = needed.pop("moments"), target.footprint
        needed[ROLE] = ArtifactSpec(
            name="null-space",
            kind="setup",
            identity={"threshold": self.hparams.null_threshold, "version": VERSION},
            builder="methods.alphaedit.null_space:build",
            needs={"moments": moments},
            passes=0,
            memory={"covariance, eigenvectors and workspace": 5 * model.covariance_fp64},
        )
        return needed

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """As for MEMIT, with bases in float32 instead of factors, at most half of all directions; and all keys so far."""
        need, model, layers = super().memory(target, data, eval_batch), target.footprint, count(self.hparams.layers)
        keys = layers * min(data.edits, model.ffn) * model.ffn * FP64
        edit = {name: size for name, size in need.edit.items() if name != "covariance factors"}
        return replace(
            need,
            kept={**need.kept, "earlier keys": keys},
            edit={**edit, "null spaces": layers * model.ffn**2 / 2 * FP32},
        )

    @property
    def stiffer(self) -> str:
        """A larger weight of the norm."""
        return "a larger `norm_weight`"

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Apply `batch` requests at a time; the diagnostics are those of the last batch and the rank of each null space."""
        from methods.alphaedit.null_space import Protecting

        spaces = self._null_spaces(artifacts[ROLE], model.device)
        rule = Protecting(spaces, self.hparams.norm_weight, state)
        anchors = self.anchors(artifacts)

        def write(matrices: ValueMatrices, rewrites: "Sequence[Rewrite]", advance: Advance) -> dict[str, float]:
            written = self.write_layers(model, matrices, rewrites, rule, anchors, advance)
            return {**{f"null_space_rank_{layer}": float(space.rank) for layer, space in spaces.items()}, **written}

        return self.inserted(model, requests, artifacts, context, write, rule.state)

    def _null_spaces(self, folder: Path, device: "torch.device") -> "Mapping[int, NullSpace]":
        """The null space of each layer, read once and kept for all blocks of a sequence."""
        from methods.alphaedit.null_space import NullSpace

        if (folder, str(device)) not in self._loaded:
            spaces = {layer: NullSpace.load(folder, layer, device) for layer in self.hparams.layers}
            self._loaded = {(folder, str(device)): spaces}
        return self._loaded[folder, str(device)]
