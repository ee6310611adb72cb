"""WISE as the harness sees it: shards of edits learned into side memories, and a model that routes prompts to them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import ArtifactSpec, Context, EditedModel, State
from harness.records import DataRef, EditRequest, Probe
from harness.registry import register
from methods.common import prefixes, require_train
from methods.common.sequential import SequentialMethod
from methods.wise import loc_prompts
from methods.wise.hparams import WiseHparams

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel
    from methods.wise.layout import Lesson

PREFIX_GROUPS = ((7, 1), (12, 1))
"""Lengths of the context prefixes, first word and BOS included: about 5 and 10 new tokens behind each of five words."""


@register("wise", title="WISE", family="memory", version=2)
class Wise(SequentialMethod):
    """Keeps the edits in copies of one feed-forward matrix; a prompt goes to the copy that it activates, or to none.

    The weights stay as they are, so whatever activates no copy is answered bit for bit as before.
    """

    Hparams = WiseHparams
    hparams: WiseHparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """Unrelated prompts of the train records, and the model's own context prefixes if any are used.

        Raises:
            UserError: if the dataset keeps no train records.
        """
        require_train(data, "wise learns what to spare from", train=data.edits)
        spared = {"loc_prompts": loc_prompts.artifact(data)}
        contexts = {"prefixes": prefixes.artifact(target, PREFIX_GROUPS, seed)}
        return {**spared, **contexts} if self.hparams.contexts else spared

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Learn all requests in their order, in shards of `save_freq`; an unfinished shard of earlier ones is filled up first.

        Each edit is trained against one unrelated prompt; where there are fewer of these than edits, they are used again.

        Args:
            model, requests, artifacts, context: see `Method.extend`; the seed draws what each shard trains.
            state: see `training.Shards`.

        Raises:
            UserError: for a request longer than the model's context, or when a loss is not a number.
        """
        from harness.models.routed import RoutedModel
        from methods.wise.memory import memory_of
        from methods.wise.merging import assembled
        from methods.wise.training import Shards, learn

        probes = loc_prompts.load(artifacts["loc_prompts"])
        contexts = prefixes.load(artifacts["prefixes"])[: self.hparams.contexts] if self.hparams.contexts else ()
        shards = Shards.of(state) if state else None
        with context.progress(self.spec.title, len(requests)) as advance, context.clock.phase("edit"):
            if requests or shards is None:
                lessons = self._lessons(model, requests, probes, contexts, shards.edits if shards else 0)
                shards = learn(model, lessons, self.hparams, context.seed, advance, shards)
            sides = assembled(shards.sides, shards.edits, self.hparams)
        memory = memory_of(model, sides, shards.edits, self.hparams)
        diagnostics = {
            "memories": float(len(sides)),
            "threshold": min(side.threshold for side in sides),
            "spared_prompts": float(min(len(probes), shards.edits)),
            "final_loss": shards.loss,
            "steps": shards.steps,
        }
        return RoutedModel(model, self.hparams.layer, memory, self.hparams.reads, diagnostics, shards.state())

    def _lessons(
        self,
        model: "LoadedModel",
        requests: Sequence[EditRequest],
        probes: Sequence[Probe],
        contexts: Sequence[str],
        before: int = 0,
    ) -> "list[Lesson]":
        """Every request in each context, with the prompt that it has to spare; `before` is the number of earlier ones.

        Raises:
            UserError: if there is no such prompt, or a request is longer than the model's context.
        """
        from methods.common.paused import edit_queries
        from methods.wise.layout import Lesson

        lessons = []
        for request, probe in zip(requests, loc_prompts.taken(probes, len(requests), before), strict=True):
            spared = EditRequest(f"{request.record_id} (spared)", probe.prompt, "", probe.answer, "")
            rows = [replace(request, prompt=f"{prefix}{request.prompt}") for prefix in ("", *contexts)]
            *edits, other = edit_queries(model, [*rows, spared])
            lessons.append(Lesson(tuple(edits), other))
        return lessons
