"""The OnceEdit method: one edit of the plug-in for all target models, and one attach step per target model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import ArtifactSpec, Context, EditedModel, Method, State
from harness.commands import harness_command
from harness.errors import UserError
from harness.memory import ANSWER_TOKENS, FP32, PROMPT_TOKENS, Memory
from harness.records import DataRef, EditRequest, FirstEdits, first_edits
from harness.registry import register
from methods.common import prefixes, require_masks, require_train, threshold
from methods.onceedit import borrowed
from methods.onceedit.flops import EmbeddingTable, relative_matrix_flops
from methods.onceedit.hparams import EARLIER, EDIT_STAGE, EDITS, PREFIXES, OnceEditHparams, without_usual

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel

EDIT_VERSION = 3
"""Increment when the edit stage yields a different plug-in for the same inputs."""

STATE_VERSION = 3
"""Increment when the contents of a pair's relative state change."""

CONTEXTS = ((10, 5), (20, 5))
"""Groups of context prefixes: length in tokens, and number per first word (of five)."""

STATE_BYTES = 304
"""Bytes of a relative state per token: six numbers in fp64, and the nearest 32 anchors with their exponents."""

PASS_BYTES = 96 * 2**20
"""Size of a tile in the pass over all rows of R. Each tile converts all anchors to fp64, so few large tiles are faster."""

TILES = 3
"""Tiles that exist at once in that pass."""

EDIT, STATE, PLUGIN_STATE = "plugin_edit", "relative_state", "plugin_state"


@register("onceedit", title="OnceEdit", family="plug-in", version=4)
class OnceEdit(Method):
    """OnceEdit (arXiv 2506.00817): the target model is unchanged; an edited plug-in is ensembled with it at every step."""

    Hparams = OnceEditHparams
    hparams: OnceEditHparams

    def identity_on(self, target: "ModelRef") -> Mapping[str, str]:
        """The precision of columns of R, where half as much could choose another token than the anchor's own."""
        is_sharp = self.hparams.relative in ("centred", "whitened") and self.hparams.decoder == "column"
        return {"columns": "fp64"} if is_sharp else {}

    def notes_on(self, target: "ModelRef") -> Sequence[str]:
        """The rule of the relative representations, because the paper's rules lose tokens of pretrained models."""
        hparams = self.hparams
        if not hparams.fuses_anchors:
            return ()
        sharpness = f", temperature {hparams.temperature:g}" if hparams.relative in ("centred", "whitened") else ""
        return (f"relative representations '{hparams.relative}'{sharpness}",)

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """The edited plug-in, the relative states of both models, and alpha's threshold if it is calibrated.

        The edit's identity does not include the target model, because one edit serves all of them. The target model's state
        does not depend on the edits, nor does the plug-in's if its embeddings are frozen.

        Raises:
            UserError: if alpha must be learned but the dataset has no unrelated records for it, if `editor` cannot edit
                a plug-in, if the target model cannot verify drafts, or if alpha must be calibrated but no train record has a
                rephrase and a locality probe.
        """
        plugin = self._plugin(target, data)
        edit = edit_artifact(plugin, data, self.hparams, seed)
        return {
            EDIT: edit,
            **self._states(target, plugin),
            **self._edited_states(target, plugin, edit),
            **self._threshold(plugin, data),
        }

    def artifacts_in_sequence(
        self, target: "ModelRef", data: DataRef, seed: int, ends: Sequence[int]
    ) -> Mapping[str, ArtifactSpec]:
        """A plug-in for each block, edited further from the one before it, and what depends on each.

        Raises:
            UserError: as `artifacts`, and if `editor` is a method, which knows nothing of earlier edits of the plug-in.
        """
        if self.hparams.editor not in borrowed.TRAINED:
            raise UserError(
                f"editor '{self.hparams.editor}' edits a plug-in once and cannot go on from its edits in sequence",
                fix=f"editor: {' or '.join(borrowed.TRAINED)}",
            )
        plugin = self._plugin(target, data)
        needed, edit = {**self._states(target, plugin), **self._threshold(plugin, data)}, None
        for end in ends:
            edit = edit_artifact(plugin, first_edits(data, end), self.hparams, seed, edit)
            of_block = {EDIT: edit, **self._edited_states(target, plugin, edit)}
            needed |= {_of_block(role, end): spec for role, spec in of_block.items()}
        return needed

    def _plugin(self, target: "ModelRef", data: DataRef) -> "ModelRef":
        """The plug-in of a target model, which can verify its drafts if it has to."""
        if self.hparams.decode == "speculative":
            _require_verification(target)
        return self.hparams.plugin_entry.reference(target.corpus or data)

    def _states(self, target: "ModelRef", plugin: "ModelRef") -> Mapping[str, ArtifactSpec]:
        """The relative states that no edit changes."""
        if not self.hparams.fuses_anchors:
            return {}
        states = {STATE: state_artifact(target, plugin, self.hparams)}
        if self.hparams.plugin_embeddings == "frozen":
            states[PLUGIN_STATE] = state_artifact(plugin, target, self.hparams)
        return states

    def _edited_states(self, target: "ModelRef", plugin: "ModelRef", edit: ArtifactSpec) -> Mapping[str, ArtifactSpec]:
        """The relative states that an edit changes."""
        if not self.hparams.fuses_anchors or self.hparams.plugin_embeddings == "frozen":
            return {}
        return {PLUGIN_STATE: state_artifact(plugin, target, self.hparams, edit)}

    def _threshold(self, plugin: "ModelRef", data: DataRef) -> Mapping[str, ArtifactSpec]:
        """Alpha's threshold for the unedited plug-in's embeddings, which an edit hardly moves."""
        hparams = self.hparams
        if not hparams.remembers or hparams.similarity_threshold != "calibrated":
            return {}
        share, name = hparams.similarity_subject, self.spec.name
        return {threshold.ROLE: threshold.artifact(plugin, data, share, name, "similarity_threshold")}

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """The edited plug-in and both relative states; while answering, its passes and the rows of anchors that fusion reads."""
        plugin = self.hparams.plugin_entry.reference(target.corpus or data)
        sides = (target.footprint, plugin.footprint)
        probabilities = sum(side.logits(eval_batch * ANSWER_TOKENS, 4) for side in sides)
        anchors = min(side.vocab for side in sides)
        return Memory(
            kept={
                "edited plug-in": plugin.footprint.parameters * FP32,
                "relative states": sum(side.vocab * STATE_BYTES for side in sides if self.hparams.fuses_anchors),
            },
            evaluate={
                "passes of the plug-in": plugin.footprint.answering(eval_batch),
                "probabilities": probabilities,
                **(
                    {"both R": sum(side.vocab for side in sides) * anchors * float(FP32)}
                    if self.hparams.decoder == "search"
                    else {}
                ),
            },
        )

    @property
    def unscored(self) -> str:
        """As the decoder."""
        return self.hparams.unscored

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Attach the edited plug-in to the target model."""
        return self._attached(model, len(requests), requests, artifacts, context)

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Attach the plug-in that has these edits as well."""
        return self._attached(model, int(state[EDITS]) + len(requests), requests, artifacts, context)

    def _attached(
        self,
        model: "LoadedModel",
        edits: int,
        last: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Attach the plug-in with this many edits, of which the last ones are given, to the target model."""
        from methods.onceedit.ensemble import EnsembleModel
        from methods.onceedit.pair import PairState
        from methods.onceedit.plugin import EditedPlugin

        def folder(role: str) -> Path:
            return artifacts[role] if role in artifacts else artifacts[_of_block(role, edits)]

        plugin = EditedPlugin.load(folder(EDIT), context.device, self.hparams.plugin_dtype)
        plugin.require(edits, last)
        roles = ((STATE, model.model), (PLUGIN_STATE, plugin.model)) if self.hparams.fuses_anchors else ()
        for role, of_model in roles:
            PairState.require(folder(role), of_model)
        with context.clock.phase("attach"):
            sides = [PairState.load(folder(role), of_model) for role, of_model in roles]
            hparams = threshold.settled(self.hparams, "similarity_threshold", artifacts)
            return EnsembleModel.attach(model, plugin, hparams, *sides)


def _require_verification(target: "ModelRef") -> None:
    """Check that a target model can verify drafts.

    Raises:
        UserError: if it cannot.
    """
    if target.spec.layout.counts_columns:
        raise UserError(
            f"{target.name} cannot verify drafts: its local attention counts columns of the cache, rejected drafts too",
            fix="decode: exact",
        )
    if target.dtype != "float32":
        raise UserError(
            f"{target.name} cannot verify drafts in {target.dtype}: passes over one id and over several differ by more than "
            "the lead of many tokens",
            fix="dtype: float32 for the model, or decode: exact",
        )


def edit_artifact(
    plugin: "ModelRef", data: DataRef, hparams: OnceEditHparams, seed: int, earlier: ArtifactSpec | None = None
) -> ArtifactSpec:
    """The artifact with the edited plug-in; if another method edits it, that method's artifacts are among its needs.

    Args:
        plugin, data: what is edited, and with which edits.
        hparams: the values of the edit stage.
        seed: of the order of training.
        earlier: the artifact with the first of these edits, if training continues from it.

    Raises:
        UserError: if the `[WEIGHT]` loss needs negatives but `data` has no train records, if `editor` is a method that
            cannot edit a plug-in, or if the plug-in cannot read several texts at once.
    """
    if plugin.spec.layout.counts_columns:
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
        "hparams": without_usual(hparams.model_dump(include={*EDIT_STAGE, *(["replay"] if earlier else [])})),
        "seed": seed,
        "version": EDIT_VERSION,
    }
    needs = {f"plugin/{role}": spec for role, spec in plugin.artifacts().items()}
    if hparams.contexts:
        needs[PREFIXES] = prefixes.artifact(plugin, CONTEXTS, seed)
    edits: float = _edits(data)
    if earlier:
        identity[EARLIER] = earlier.key
        needs[EARLIER] = earlier
        edits = (edits - _edits(earlier.inputs["data"])) * (1 + hparams.replay)
    texts = edits * (1 + hparams.paraphrases) * (1 + hparams.contexts) * (1 + hparams.negatives)
    passes, memory = 3 * hparams.epochs * texts, _edit_memory(plugin, hparams)
    if hparams.editor not in borrowed.TRAINED:
        identity["editor"] = borrowed.identity(hparams.editor, plugin)
        other = borrowed.editor(identity["editor"])
        needs |= {f"editor/{role}": spec for role, spec in borrowed.needs(other, plugin, data, seed).items()}
        passes = edits * other.hparams.passes_per_edit + texts
        memory = _borrowed_memory(plugin, data, other)
    return ArtifactSpec(
        name="plugin-edit",
        kind="edit",
        identity=identity,
        builder="methods.onceedit.edit_stage:build",
        inputs={"plugin": plugin, "data": data},
        needs=needs,
        passes=round(passes),
        memory=memory,
    )


def _edits(data: DataRef) -> int:
    """How many of the records are edited."""
    return data.so_far if isinstance(data, FirstEdits) else data.edits


def _of_block(role: str, edits: int) -> str:
    """The role, in a sequence, of an artifact after this many edits."""
    return f"{role}/{edits}"


def state_artifact(
    model: "ModelRef", other: "ModelRef", hparams: OnceEditHparams, edit: ArtifactSpec | None = None
) -> ArtifactSpec:
    """The artifact with a pair's anchors and the relative state of `model`, shared by all edits unless `edit` is given.

    Args:
        model: the model whose state it is.
        other: the other model of the pair.
        hparams: the rules of anchors and rows.
        edit: the edit after which the state is computed, if it changes the embeddings of `model`.
    """
    models = {"model": model, "other": other}
    needs = {f"{role}/{need}": spec for role, ref in models.items() for need, spec in ref.artifacts().items()}
    dtype = hparams.plugin_dtype or model.dtype
    return ArtifactSpec(
        name="relative-state",
        kind="setup",
        identity={
            **{role: ref.identity() for role, ref in models.items()},
            **hparams.model_dump(include={"anchors", "eos", "relative", "temperature"}),
            **({"anchor_share": hparams.anchor_share} if hparams.anchor_share < 1 else {}),
            **({"dtype": dtype} if edit and dtype != model.dtype else {}),
            "version": STATE_VERSION,
        },
        builder="methods.onceedit.pair:build",
        inputs=models,
        needs={**needs, **({"edit": edit} if edit else {})},
        passes=0,
        flops=relative_matrix_flops(
            EmbeddingTable(model.footprint.vocab, model.footprint.hidden),
            min(model.footprint.vocab, other.footprint.vocab),
        ),
        memory=_state_memory(model, other, edit is not None),
    )


def _edit_memory(plugin: "ModelRef", hparams: OnceEditHparams) -> dict[str, float]:
    """A copy of the plug-in in fp32 with gradients and AdamW's state, of all weights or of low-rank updates; a batch."""
    model, tokens = plugin.footprint, hparams.batch * PROMPT_TOKENS
    weights = model.parameters * FP32
    layers = 1 if hparams.gradient_checkpointing else model.n_layers
    trained = 0.0
    if hparams.editor == "full":
        table = model.vocab * model.hidden * FP32
        trained = 3 * (weights - (table if hparams.plugin_embeddings == "frozen" else 0.0))
    return {
        "copy in fp32": weights,
        "gradients and Adam": trained,
        "activations": model.backward(tokens, layers),
        "logits": model.logits(hparams.batch * ANSWER_TOKENS, 4),
    }


def _borrowed_memory(plugin: "ModelRef", data: DataRef, other: Method) -> dict[str, float]:
    """A copy of the plug-in in fp32, and what another method needs to edit it."""
    need = other.memory(plugin, data, 1)
    return {"copy in fp32": plugin.footprint.parameters * FP32, **need.kept, **need.edit}


def _state_memory(model: "ModelRef", other: "ModelRef", is_edited: bool) -> dict[str, float]:
    """The state, the anchors in fp32 and a few tiles of the pass over all rows."""
    own = model.footprint
    anchors = min(own.vocab, other.footprint.vocab)
    return {
        "edited plug-in": own.parameters * float(FP32) if is_edited else 0.0,
        "state": own.vocab * float(STATE_BYTES),
        "anchors": anchors * own.hidden * float(FP32),
        "tiles": TILES * min(PASS_BYTES, own.vocab * anchors * float(FP32)),
    }
