"""DEFER as the harness sees it: the requests in their order, each trained into the same gate and value."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api import Context, EditedModel, Method, State
from harness.errors import UserError
from harness.records import EditRequest
from harness.registry import register
from methods.defer.hparams import DeferHparams

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel
    from harness.models.routed import Reads
    from methods.common.tally import Tally
    from methods.defer.gate import Gate


@register("defer", title="DEFER", family="memory", version=2)
class Defer(Method):
    """A gate beside one feed-forward matrix decides by one token whether a learned value answers, at every token.

    It learns from edits alone: nothing teaches the gate what to leave to the model. An untrained gate is about one half
    for any prompt, and each edit opens it a little further for all that read alike.
    """

    Hparams = DeferHparams
    hparams: DeferHparams

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Train on one request after the other, from a gate and a value drawn by the seed.

        An edit whose loss is no longer a number fails: it leaves no trace. `diagnostics` counts them.

        Raises:
            UserError: for a request longer than the model's context, or if all edits fail.
        """
        from harness.models.routed import matrix
        from methods.common.tally import Tally
        from methods.defer.gate import Gate

        def drawn() -> Gate:
            return Gate.drawn(matrix(model, self.hparams.layer), self.hparams.threshold, context.seed)

        return self._trained(model, requests, drawn, Tally(), context)

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Go on training the same gate and value: what `edit` gives for earlier and further requests, bit for bit.

        Args:
            model, requests, artifacts, context: as for `edit`; nothing is drawn any more.
            state: gate and value in the precision that they are trained in, and how all edits so far went.

        Raises:
            UserError: for a request longer than the model's context.
        """
        from methods.common.tally import Tally
        from methods.defer.gate import Gate

        def kept() -> Gate:
            return Gate.kept(state, self.hparams.threshold)

        return self._trained(model, requests, kept, Tally.kept(state), context)

    def _trained(
        self,
        model: "LoadedModel",
        requests: Sequence[EditRequest],
        make_gate: "Callable[[], Gate]",
        tally: "Tally",
        context: Context,
    ) -> EditedModel:
        """Train what `make_gate` gives, which counts as part of the edit."""
        from harness.models.routed import RoutedModel
        from methods.common.paused import edit_queries
        from methods.defer.training import learn

        losses = []
        with context.progress("DEFER", len(requests)) as advance, context.clock.phase("edit"):
            gate = make_gate()
            for query in edit_queries(model, requests):
                losses.append(learn(model, query, gate, self.hparams))
                advance()
        tally = tally.with_losses(losses)
        if not tally.learned:
            raise UserError("defer: the loss of every edit is not a number", fix="choose a smaller `lr`")
        reads: Reads = "prompt" if self.hparams.query == "prompt_last" else "sequence"
        state = {**gate.requires_grad_(False).state(), **tally.state()}
        return RoutedModel(model, self.hparams.layer, gate, reads, tally.figures(), state)
