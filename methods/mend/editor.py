"""The MEND method: a hypernetwork trained in advance, and one combined update per batch of edits."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import ArtifactSpec, Context, EditedModel, Method
from harness.memory import ANSWER_TOKENS, FP32, PROMPT_TOKENS, Memory
from harness.records import DataRef, EditRequest
from harness.registry import register
from methods.common import require_examples, require_layers, require_matrices, require_train
from methods.mend.hparams import HypernetworkHparams, MendHparams

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel

TRAINING_VERSION = 2
"""Increment when training yields a different hypernetwork for the same inputs."""

ROLE = "hypernetwork"

PASSES_PER_EXAMPLE = 10
"""Per edit of a training step: forward and backward for its factors and through the edited model, twice for locality."""


@register("mend", title="MEND", family="hypernetwork", version=3)
class Mend(Method):
    """Transforms the rank-one factors of an edit's gradient with a hypernetwork and adds the resulting update (MEND §3).

    The update of N edits is the sum of N updates, each trained in isolation, so they interfere more as N grows.
    """

    Hparams = MendHparams
    hparams: MendHparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """The hypernetwork, trained for this model on the train records.

        Raises:
            UserError: if the dataset has too few train records, or the model no such matrices.
        """
        require_matrices(target, self.hparams.matrices)
        require_layers(target, self.hparams.layers)
        trained = self.hparams.model_dump(mode="json", include=set(HypernetworkHparams.model_fields))
        # the number itself, so that a hypernetwork that it does not change keeps its key
        trained["validation"] = self.hparams.held_out(self._examples(data))
        return {
            ROLE: ArtifactSpec(
                name="mend-hypernetwork",
                kind="setup",
                identity={
                    "model": target.identity(),
                    "data": data.identity(),
                    "hparams": trained,
                    "seed": seed,
                    "version": TRAINING_VERSION,
                },
                builder="methods.mend.training:build",
                inputs={"model": target, "data": data},
                needs=target.artifacts(),
                passes=PASSES_PER_EXAMPLE * self.hparams.steps * self.hparams.train_batch,
                memory=self._training_memory(target, data),
            )
        }

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """The matrices and the hypernetwork; a micro-batch from the lowest matrix on, and an update."""
        hparams, model = self.hparams, target.footprint
        matrices = len(hparams.layers) * len(hparams.matrices)
        rows = min(hparams.micro_batch, hparams.batch, data.edits)
        return Memory(
            kept={
                "edited matrices": matrices * model.edited_matrix,
                "hypernetwork": self._hypernetwork_bytes(target),
            },
            edit={
                "updates": 2 * model.matrix_fp32,
                "activations": model.backward(rows * PROMPT_TOKENS, len(hparams.layers)),
                "logits": model.logits(rows * ANSWER_TOKENS, 4),
            },
        )

    def _examples(self, data: DataRef) -> int:
        """Number of train records to learn from and to validate on; EasyEdit needs no rephrase of them.

        Raises:
            UserError: if there are fewer than two, as far as is known.
        """
        if self.hparams.implementation == "corrected":
            return require_examples(data, "mend", least=2)
        require_train(data, "mend trains its hypernetwork on")
        return data.train

    def _training_memory(self, target: "ModelRef", data: DataRef) -> dict[str, float]:
        """The hypernetwork with gradient, Adam's state and the best so far; one step; streams of all train records."""
        hparams, model = self.hparams, target.footprint
        rows = 3 * hparams.train_batch
        return {
            "hypernetwork with gradient, Adam and the best so far": 5 * self._hypernetwork_bytes(target),
            "streams": model.streams(3 * data.train * PROMPT_TOKENS),
            "activations": model.backward(rows * PROMPT_TOKENS, len(hparams.layers)),
            "logits": model.logits(rows * ANSWER_TOKENS, 4),
        }

    def _hypernetwork_bytes(self, target: "ModelRef") -> float:
        """Two residual layers for each direction of the matrices, each of two matrices of size × rank."""
        model, known = target.footprint, target.spec.layout.matrices
        directions = {name == known[-1] for name in self.hparams.matrices}
        return len(directions) * 4.0 * (model.hidden + model.ffn) * self.hparams.rank * FP32

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Apply one combined update per round and `batch` requests, each on top of the previous ones, to matrices in float32.

        Raises:
            UserError: if an update is not finite; the model is then unchanged.
        """
        from harness.models.edited import WeightEditedModel
        from harness.models.weights import widened
        from methods.common.paused import edit_queries
        from methods.common.prediction import edit_row
        from methods.mend.network import load
        from methods.mend.update import Updater

        hypernetwork, report = load(artifacts[ROLE], model.device)
        updater = Updater(model, hypernetwork, self.hparams)
        matrices = widened(model.model, [name.removesuffix(".weight") for name in updater.names])
        with (
            context.progress(self.spec.title, len(requests)) as advance,
            matrices.restored_on_error(),
            context.clock.phase("edit"),
        ):
            queries = edit_queries(model, requests)
            rows = [edit_row(model, query, self.hparams.implementation) for query in queries]
            for start in range(0, len(rows), self.hparams.batch):
                call = rows[start : start + self.hparams.batch]
                for _ in range(self.hparams.rounds):
                    updater.apply(call)
                advance(len(call))
        training = {"trained_steps": report["best_step"], "held_out_loss": report["held_out"]}
        return WeightEditedModel(model, matrices.restore, {"change_norm": matrices.change_norm(), **training})
