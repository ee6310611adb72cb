"""The method as the harness sees it: one edit of the plug-in for all target models, one attachment per model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from harness.errors import UserError
from harness.records import DataRef, EditRequest
from methods import base
from methods.base import ArtifactSpec, Context, EditedModel, MethodSpec
from methods.onceedit import borrowed
from methods.onceedit.hparams import EDIT_STAGE, OnceEditHparams
from methods.registry import register

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel

EDIT_VERSION = 2
"""Raised whenever the edit stage learns something else from the same inputs."""

ROLE = "plugin_edit"


@register
class OnceEdit:
    """OnceEdit (arXiv 2506.00817): the target model stays as it is; an edited plug-in joins it at every step."""

    spec: ClassVar[MethodSpec] = MethodSpec("onceedit", "OnceEdit", "plug-in", version=1)
    Hparams: ClassVar[type[base.Hparams]] = OnceEditHparams

    def __init__(self, hparams: OnceEditHparams) -> None:
        self.hparams = hparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """The edited plug-in. Its identity does not hold the target model: one edit serves every model.

        Raises:
            UserError: if alpha has to be learned and the data set keeps no unrelated records for it, or if `editor` cannot
                edit a plug-in.
        """
        from harness.models.catalogue import reference

        is_zoo = self.hparams.plugin.startswith("zoo/")
        plugin = reference(self.hparams.plugin, corpus=(target.corpus or data) if is_zoo else None)
        return {ROLE: edit_artifact(plugin, data, self.hparams, seed)}

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Attach the edited plug-in to the target model: anchors and relative states of the pair."""
        from methods.onceedit.ensemble import EnsembleModel
        from methods.onceedit.plugin import EditedPlugin

        plugin = EditedPlugin.load(artifacts[ROLE], context.device)
        plugin.require(requests)
        with context.clock.phase("attach"):
            return EnsembleModel.attach(model, plugin, requests, self.hparams)


def edit_artifact(plugin: "ModelRef", data: DataRef, hparams: OnceEditHparams, seed: int) -> ArtifactSpec:
    """The artifact that holds a plug-in after the edit stage; what another method needs to edit it is among its needs.

    Raises:
        UserError: if the `[WEIGHT]` loss needs negatives and `data` has no train records, or if `editor` is a method that
            cannot edit a plug-in.
    """
    if hparams.lambda_weight and hparams.negatives and not data.train:
        raise UserError(
            f"onceedit learns alpha from unrelated records, and data set '{data.name}' keeps none for training",
            fix=f"datasets: [{{name: {data.name}, train: 200}}]",
        )
    from harness.models import zoo

    identity: dict[str, Any] = {
        "plugin": plugin.identity(),
        "data": data.identity(),
        "hparams": hparams.model_dump(include=set(EDIT_STAGE)),
        "seed": seed,
        "version": EDIT_VERSION,
    }
    needs = {"plugin": zoo.artifact(plugin)} if plugin.weights == "zoo" else {}
    if hparams.editor not in borrowed.TRAINED:
        identity["editor"] = borrowed.identity(hparams.editor, plugin.name)
        wanted = borrowed.editor(identity["editor"]).artifacts(plugin, data, seed)
        needs |= {f"editor/{role}": spec for role, spec in wanted.items()}
    return ArtifactSpec(
        name="plugin-edit",
        kind="edit",
        identity=identity,
        builder="methods.onceedit.edit_stage:build",
        inputs={"plugin": plugin, "data": data},
        needs=needs,
    )
