"""The retrieval method: nothing is trained and no weights change; the nearest edits are stated before a prompt."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from harness.api import ArtifactSpec, Context, EditedModel, Hparams, State
from harness.errors import UserError
from harness.memory import FP32, PROMPT_TOKENS, Memory
from harness.records import DataRef, EditRequest
from harness.registry import register
from methods.common import Implementation, require_train, threshold
from methods.common.sequential import SequentialMethod
from methods.common.threshold import Threshold

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel


DEMONSTRATIONS_VERSION = 1
"""Increment when other demonstrations are made from the same records."""

ROLE = "demonstrations"

IDS = 8
"""Bytes of an id, of which a token has four: of the prompt, of the statement, its share, and its place among the distinct ones."""


class RetrievalHparams(Hparams):
    """Hyper-parameters of retrieval.

    Attributes:
        nearest: number of edits that are put before a prompt, the most similar one last.
        threshold: an edit that is less similar to a prompt than this does not count; `calibrated` chooses it on train records
            (see `methods.common.threshold`).
        similarity_subject: share of the subject's tokens in the similarity (see `methods.common.similarity`).
        form: how an edit is stated. `fact`: prompt and target as they are. `new_fact`: `New Fact: …`, and `Prompt: ` in front
            of the prompt, the form of IKE (Zheng et al. 2023, arXiv 2305.12740).
        fact_tokens: most tokens of a stated edit.
    """

    nearest: int = Field(ge=1)
    threshold: Threshold
    similarity_subject: float = Field(ge=0, le=1)
    form: Literal["fact", "new_fact"]
    fact_tokens: int = Field(ge=1)

    @property
    def passes_per_edit(self) -> float:
        """None: embeddings are looked up."""
        return 0.0


@register("retrieval", title="Retrieval", family="memory", version=1)
class Retrieval(SequentialMethod):
    """Search the edits whose prompts are most similar to a prompt, and let the model read them first.

    Similarity is measured with the target model's own input embeddings, so that nothing else is needed. Prompts that
    resemble no edit are answered by the unedited model, bit for bit.
    """

    Hparams: ClassVar[type[RetrievalHparams]] = RetrievalHparams
    hparams: RetrievalHparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """The threshold, if it is calibrated.

        Raises:
            UserError: if it is, and no train record has a rephrase and a locality probe.
        """
        if self.hparams.threshold != "calibrated":
            return {}
        share, name = self.hparams.similarity_subject, self.spec.name
        return {threshold.ROLE: threshold.artifact(target, data, share, name, "threshold")}

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """All edits as ids and the embeddings of their distinct tokens, and longer prompts to answer."""
        model, keys = target.footprint, data.edits * PROMPT_TOKENS
        tokens, distinct = eval_batch * self.prompt_overhead(), min(keys, model.vocab)
        return Memory(
            kept={
                "edits": 4.0 * keys * IDS,
                "embeddings of their tokens": distinct * model.hidden * model.entry_bytes,
            },
            evaluate={
                "similarities": (distinct * PROMPT_TOKENS + 2.0 * keys) * FP32,
                "longer prompts": model.cache(tokens) + model.forward(tokens),
            },
        )

    def prompt_overhead(self) -> int:
        """Stated edits, and the text between them and the prompt."""
        return self.hparams.nearest * self.hparams.fact_tokens + 8

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Remember further edits.

        Raises:
            UserError: if a stated edit has more than `fact_tokens` tokens.
        """
        from methods.retrieval.prompted import Facts, Prompted

        with context.progress(self.spec.title, len(requests)) as advance, context.clock.phase("edit"):
            facts = Facts.of(model, state, requests, self.hparams)
            advance(len(requests))
        return Prompted(model, facts, threshold.settled(self.hparams, "threshold", artifacts))


class IkeHparams(RetrievalHparams):
    """Hyper-parameters of IKE, in addition to those of retrieval.

    Attributes:
        demonstrations: number of demonstrations before the fact, the most similar one last.
        demonstration_tokens: longer demonstrations are left out.
        implementation: `faithful-easyedit` makes three demonstrations from every train record, chooses them for an edit and not
            for a question, with the mean embedding of their text, and puts the most similar one first.
    """

    demonstrations: int = Field(ge=1)
    demonstration_tokens: int = Field(ge=1)
    implementation: Implementation = "corrected"

    @model_validator(mode="after")
    def _one_new_fact(self) -> Self:
        if self.implementation == "faithful-easyedit" and (self.nearest, self.form) != (1, "new_fact"):
            raise ValueError(
                f"nearest {self.nearest}, form {self.form}: faithful-easyedit states one fact (nearest: 1, form: new_fact)"
            )
        return self


@register("ike", title="IKE", family="memory", version=2)
class Ike(Retrieval):
    """Retrieval with demonstrations, before the fact, of what a new fact changes and what it leaves unchanged.

    IKE was published for one known edit at a time. Here the edit is searched, as there are many.
    """

    Hparams = IkeHparams
    hparams: IkeHparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """As for retrieval, and the demonstrations, made from the train records.

        Raises:
            UserError: as for retrieval, and if the dataset has no train records.
        """
        require_train(data, "ike shows demonstrations made from")
        is_faithful = self.hparams.implementation == "faithful-easyedit"
        form = {"form": "easyedit"} if is_faithful else {}
        return {
            **super().artifacts(target, data, seed),
            ROLE: ArtifactSpec(
                name="demonstrations",
                kind="setup",
                identity={"data": data.identity(), "version": DEMONSTRATIONS_VERSION, **form},
                builder=f"methods.retrieval.{'as_easyedit' if is_faithful else 'demonstrations'}:build",
                inputs={"data": data},
                passes=0,
            ),
        }

    def prompt_overhead(self) -> int:
        """The demonstrations too."""
        return super().prompt_overhead() + self.hparams.demonstrations * self.hparams.demonstration_tokens

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """As for retrieval.

        Raises:
            UserError: also if all demonstrations are too long, or for a sequence with `faithful-easyedit`, whose text is not in
                the state.
        """
        from methods.common.similarity import embeddings_of
        from methods.retrieval.demonstrations import Demonstrations
        from methods.retrieval.prompted import Facts, Prompted

        hparams = threshold.settled(self.hparams, "threshold", artifacts)
        if hparams.implementation == "faithful-easyedit":
            if state:
                raise UserError(
                    "ike: faithful-easyedit makes all edits at once",
                    fix="implementation: corrected, or schedule: batch",
                )
            return self._as_easyedit(model, requests, hparams, artifacts[ROLE], context)
        with context.progress(self.spec.title, len(requests)) as advance, context.clock.phase("edit"):
            facts = Facts.of(model, state, requests, hparams)
            folder, share, tokens = artifacts[ROLE], hparams.similarity_subject, hparams.demonstration_tokens
            shown = Demonstrations.load(folder, model, embeddings_of(model), share, tokens)
            advance(len(requests))
        return Prompted(model, facts, hparams, lambda prompt: shown.nearest(prompt, hparams.demonstrations))

    def _as_easyedit(
        self,
        model: "LoadedModel",
        requests: Sequence[EditRequest],
        hparams: IkeHparams,
        folder: Path,
        context: Context,
    ) -> EditedModel:
        from methods.retrieval.as_easyedit import Examples, PromptedAsEasyEdit

        with context.progress(self.spec.title, len(requests)) as advance, context.clock.phase("edit"):
            examples = Examples.load(folder, model, hparams.demonstration_tokens)
            edited = PromptedAsEasyEdit(model, requests, hparams, examples)
            advance(len(requests))
        return edited
