"""The OnceEdit method: one edit of the plug-in for all target models, and one attach step per target model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import ArtifactSpec, Context, EditedModel, Method
from harness.commands import harness_command
from harness.errors import UserError
from harness.models.catalogue import entry
from harness.records import DataRef, EditRequest
from harness.registry import register
from methods.common import require_masks, require_train
from methods.onceedit import borrowed
from methods.onceedit.hparams import EDIT_STAGE, OnceEditHparams

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel

EDIT_VERSION = 2
"""Increment when the edit stage yields a different plug-in for the same inputs."""

STATE_VERSION = 1
"""Increment when the contents of a pair's relative state change."""

EDIT, STATE = "plugin_edit", "relative_state"


@register("onceedit", title="OnceEdit", family="plug-in", version=2)
class OnceEdit(Method):
    """OnceEdit (arXiv 2506.00817): the target model is unchanged; an edited plug-in is ensembled with it at every step."""

    Hparams = OnceEditHparams
    hparams: OnceEditHparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """The edited plug-in, and the relative state of the target model paired with the unedited plug-in.

        The first artifact's identity does not include the target model, because one edit serves all of them; the second's
        does not include the edits.

        Raises:
            UserError: if alpha must be learned but the dataset has no unrelated records for it, or if `editor` cannot edit
                a plug-in.
        """
        plugin = self.hparams.plugin_entry.reference(target.corpus or data)
        return {
            EDIT: edit_artifact(plugin, data, self.hparams, seed),
            STATE: state_artifact(target, plugin, self.hparams),
        }

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Attach the edited plug-in to the target model, which recomputes the plug-in's relative state."""
        from methods.onceedit.ensemble import EnsembleModel
        from methods.onceedit.pair import PairState
        from methods.onceedit.plugin import EditedPlugin

        plugin = EditedPlugin.load(artifacts[EDIT], context.device)
        plugin.require(requests)
        pair = PairState.load(artifacts[STATE], model.model, self.hparams.relative)
        with context.clock.phase("attach"):
            return EnsembleModel.attach(model, plugin, requests, self.hparams, pair)


def edit_artifact(plugin: "ModelRef", data: DataRef, hparams: OnceEditHparams, seed: int) -> ArtifactSpec:
    """The artifact with the edited plug-in; if another method edits it, that method's artifacts are among its needs.

    Raises:
        UserError: if the `[WEIGHT]` loss needs negatives but `data` has no train records, if `editor` is a method that
            cannot edit a plug-in, or if the plug-in cannot read several texts at once.
    """
    if entry(plugin.name).layout.counts_columns:
        raise UserError(
            f"{plugin.name} cannot be a plug-in: its local attention counts columns of the cache, which texts share",
            fix=harness_command("list", "models"),
        )
    require_masks(plugin, "onceedit's plug-in")
    if hparams.lambda_weight and hparams.negatives:
        require_train(data, "onceedit learns alpha from")
    identity: dict[str, Any] = {
        "plugin": plugin.identity(),
        "data": data.identity(),
        "hparams": hparams.model_dump(include=set(EDIT_STAGE)),
        "seed": seed,
        "version": EDIT_VERSION,
    }
    needs = {f"plugin/{role}": spec for role, spec in plugin.artifacts().items()}
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
        passes=3 * hparams.epochs * data.edits * (1 + hparams.negatives),
    )


def state_artifact(target: "ModelRef", plugin: "ModelRef", hparams: OnceEditHparams) -> ArtifactSpec:
    """The artifact with a pair's anchors and the target model's relative state, shared by all edits of the plug-in."""
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
        needs={f"{role}/{need}": spec for role, ref in models.items() for need, spec in ref.artifacts().items()},
        passes=0,
    )
