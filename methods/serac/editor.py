"""The SERAC method: edits are stored, and two small networks decide which prompts they concern and answer these."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import ArtifactSpec, Context, EditedModel, State
from harness.memory import ANSWER_TOKENS, FP32, PROMPT_TOKENS, Memory
from harness.records import DataRef, EditRequest
from harness.registry import register
from methods.common import require_train
from methods.common.sequential import SequentialMethod
from methods.serac.hparams import TRAINING, SeracHparams

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel

TRAINING_VERSION = 1
"""Increment when training yields different networks for the same inputs."""

ROLE = "networks"

NETWORKS = 2


@register("serac", title="SERAC", family="memory", version=1)
class Serac(SequentialMethod):
    """Store edits, and let a small model answer the prompts in their scope (Mitchell et al. 2022).

    The networks read and write text, so that one training serves target models with any tokenizer. Prompts in no scope are
    answered by the unedited model, in the same batches and bit for bit.
    """

    Hparams = SeracHparams
    hparams: SeracHparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """The two networks, whose identity does not include the target model.

        Raises:
            UserError: if the dataset has no train records, or the small model is unknown.
        """
        require_train(data, "serac trains its scope classifier and counterfactual model on")
        small = self._small(target, data)
        return {
            ROLE: ArtifactSpec(
                name="serac-networks",
                kind="setup",
                identity={
                    "model": small.identity(),
                    "data": data.identity(),
                    "hparams": self.hparams.model_dump(mode="json", include=set(TRAINING)),
                    "seed": seed,
                    "version": TRAINING_VERSION,
                },
                builder="methods.serac.training:build",
                inputs={"model": small, "data": data},
                needs=small.artifacts(),
                # of an edit, its question and one outside, forward and backward in the encoder; twice that for the answer
                passes=5 * 3 * self.hparams.steps * min(self.hparams.batch, data.train),
                memory=self._training_memory(small),
            )
        }

    @property
    def unscored(self) -> str:
        """The counterfactual model gives probabilities to ids of its own tokenizer."""
        return "its answers come from a model with a vocabulary of its own"

    def _small(self, target: "ModelRef", data: DataRef) -> "ModelRef":
        return self.hparams.entry.reference(target.corpus or data)

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """Both networks in float32 and the keys of all edits; while answering, the passes of the counterfactual model."""
        small = self._small(target, data).footprint
        tokens = eval_batch * self.hparams.edit_tokens
        return Memory(
            kept={
                "scope classifier and counterfactual model": NETWORKS * small.parameters * FP32,
                "keys": float(data.edits * self.hparams.width * FP32),
            },
            evaluate={
                "passes of the counterfactual model": small.answering(eval_batch)
                + small.cache(tokens)
                + small.forward(tokens)
            },
        )

    def _training_memory(self, small: "ModelRef") -> dict[str, float]:
        """Both networks with gradient, Adam's state and the best so far; one step of the counterfactual model."""
        model, rows = small.footprint, self.hparams.batch
        return {
            "networks with gradient, Adam and the best so far": NETWORKS * 5.0 * model.parameters * FP32,
            "activations": model.backward(3 * rows * PROMPT_TOKENS, model.n_layers),
            "logits": model.logits(rows * ANSWER_TOKENS, 4),
        }

    def prompt_overhead(self) -> int:
        """The edit that the counterfactual model reads first."""
        return self.hparams.edit_tokens

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Store further edits.

        Raises:
            UserError: if an edit has more than `edit_tokens` tokens.
        """
        from methods.serac.memory import EditMemory
        from methods.serac.networks import Networks
        from methods.serac.routing import ScopedModel

        networks = Networks.load(artifacts[ROLE], model.device)
        with context.progress(self.spec.title, len(requests)) as advance, context.clock.phase("edit"):
            memory = EditMemory.of(networks, state, requests, self.hparams.edit_tokens)
            advance(len(requests))
        return ScopedModel(model, networks, memory, self.hparams.threshold)
