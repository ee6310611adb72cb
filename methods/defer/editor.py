"""DEFER as the harness sees it: the requests in their order, each trained into the same gate and value."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from harness.errors import UserError
from harness.records import DataRef, EditRequest
from methods.base import ArtifactSpec, Context, EditedModel, Hparams, MethodSpec
from methods.defer.hparams import DeferHparams
from methods.registry import register

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel
    from methods.common.routed import Reads


@register
class Defer:
    """A gate beside one feed-forward matrix decides by one token whether a learned value answers, at every token.

    It learns from edits alone: nothing teaches the gate what to leave to the model. An untrained gate is about one half
    for any prompt, and each edit opens it a little further for all that read alike.
    """

    spec: ClassVar[MethodSpec] = MethodSpec("defer", "DEFER", family="memory", version=1)
    Hparams: ClassVar[type[Hparams]] = DeferHparams

    def __init__(self, hparams: DeferHparams) -> None:
        self.hparams = hparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """Nothing is needed beforehand."""
        return {}

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Train on one request after the other.

        An edit whose loss is no longer a number fails: it leaves no trace. `diagnostics` counts them.

        Raises:
            UserError: for a request longer than the model's context, or if all edits fail.
        """
        from methods.common.paused import edit_queries
        from methods.common.routed import RoutedModel, matrix
        from methods.defer.gate import Gate
        from methods.defer.training import learn

        queries = edit_queries(model, requests)
        losses = []
        with context.progress("DEFER", len(queries)) as advance, context.clock.phase("edit"):
            gate = Gate(matrix(model, self.hparams.layer), self.hparams.threshold, context.seed)
            for query in queries:
                losses.append(learn(model, query, gate, self.hparams))
                advance()
        learned = [loss for loss in losses if loss is not None]
        if not learned:
            raise UserError("defer: the loss of every edit is not a number", fix="choose a smaller `lr`")
        figures = {"failed": float(len(losses) - len(learned)), "final_loss": sum(learned) / len(learned)}
        reads: Reads = "prompt" if self.hparams.query == "prompt_last" else "sequence"
        return RoutedModel(model, self.hparams.layer, gate.requires_grad_(False), reads, figures)
