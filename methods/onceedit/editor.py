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

STATE_VERSION = 1
"""Raised whenever the relative state of a pair holds something else."""

EDIT, STATE = "plugin_edit", "relative_state"


@register
class OnceEdit:
    """OnceEdit (arXiv 2506.00817): the target model stays as it is; an edited plug-in joins it at every step."""

    spec: ClassVar[MethodSpec] = MethodSpec("onceedit", "OnceEdit", "plug-in", version=2)
    Hparams: ClassVar[type[base.Hparams]] = OnceEditHparams

    def __init__(self, hparams: OnceEditHparams) -> None:
        self.hparams = hparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """The edited plug-in, and what its unedited self and the target model share.

        The identity of the first does not hold the target model: one edit serves every model. That of the second does
        not hold the edits.

        Raises:
            UserError: if alpha has to be learned and the data set keeps no unrelated records for it, or if `editor` cannot
                edit a plug-in.
        """
        from harness.models.catalogue import reference

        is_zoo = self.hparams.plugin.startswith("zoo/")
        plugin = reference(self.hparams.plugin, corpus=(target.corpus or data) if is_zoo else None)
        return {
            EDIT: edit_artifact(plugin, data, self.hparams, seed),
            STATE: state_artifact(target, plugin, self.hparams),
        }

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Attach the edited plug-in to the target model: its relative state is new after every edit."""
        from methods.onceedit.ensemble import EnsembleModel
        from methods.onceedit.pair import PairState
        from methods.onceedit.plugin import EditedPlugin

        plugin = EditedPlugin.load(artifacts[EDIT], context.device)
        plugin.require(requests)
        pair = PairState.load(artifacts[STATE], model.model, self.hparams.relative)
        with context.clock.phase("attach"):
            return EnsembleModel.attach(model, plugin, requests, self.hparams, pair)


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


def state_artifact(target: "ModelRef", plugin: "ModelRef", hparams: OnceEditHparams) -> ArtifactSpec:
    """The artifact that holds a pair's anchors and the target model's state; all edits of the plug-in share it."""
    from harness.models import zoo

    models = {"model": target, "plugin": plugin}
    return ArtifactSpec(
        name="relative-state",
        kind="setup",
        identity={
            "target": target.identity(),
            "plugin": plugin.identity(),
            **hparams.model_dump(include={"anchors", "relative", "eos"}),
            "version": STATE_VERSION,
        },
        builder="methods.onceedit.pair:build",
        inputs=models,
        needs={role: zoo.artifact(ref) for role, ref in models.items() if ref.weights == "zoo"},
    )
