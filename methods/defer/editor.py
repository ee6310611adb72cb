"""DEFER as the harness sees it: the requests in their order, each trained into the same gate and value."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from harness.api import Context, EditedModel, Hparams, State
from harness.errors import UserError
from harness.records import EditRequest
from harness.registry import register
from methods.common.sequential import EditTally, SequentialMethod

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel
    from harness.models.routed import Reads


class DeferHparams(Hparams):
    """All choices of DEFER; the values with their sources are in `methods/hparams/defer/`.

    Attributes:
        layer: block whose second feed-forward matrix has the gate next to it.
        query: the token that gate and value read, in training and in use: the `prompt_last`, or, as EasyEdit has it, the
            `sequence_last`. The latter is the target's own last token in training and in teacher forcing, which so tells
            the gate the answer, and the last token so far where the answer is generated, each id on a text read anew.
        threshold: the gate from which on the value answers.
        lr: of Adam, which starts afresh for each request.
        steps: optimiser steps per request.
    """

    layer: int = Field(ge=0)
    query: Literal["prompt_last", "sequence_last"]
    threshold: float = Field(gt=0, lt=1)
    lr: float = Field(gt=0)
    steps: int = Field(ge=1)


@register("defer", title="DEFER", family="memory", version=2)
class Defer(SequentialMethod):
    """A gate next to one feed-forward matrix decides by one token whether a learned value answers, at every token.

    It learns from edits alone: nothing teaches the gate what to leave to the model. An untrained gate is about one half
    for any prompt, and each edit opens it a little further for all that read alike.
    """

    Hparams = DeferHparams
    hparams: DeferHparams

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Train the gate and the value on one request after the other; blocks give what one edit gives, bit for bit.

        An edit whose loss is no longer a number fails: it leaves no trace. `diagnostics` counts them.

        Args:
            model, requests, artifacts, context: see `Method.extend`; the seed draws the first gate and value.
            state: gate and value in the precision that they are trained in, and how all edits so far went.

        Raises:
            UserError: for a request longer than the model's context, or if all edits fail.
        """
        from harness.models.routed import RoutedModel, matrix
        from methods.common.paused import edit_queries
        from methods.defer.gate import Gate, learn

        threshold = self.hparams.threshold
        losses = []
        with context.progress(self.spec.title, len(requests)) as advance, context.clock.phase("edit"):
            gate = (
                Gate.kept(state, threshold)
                if state
                else Gate.drawn(matrix(model, self.hparams.layer), threshold, context.seed)
            )
            for query in edit_queries(model, requests):
                losses.append(learn(model, query, gate, self.hparams))
                advance()
        tally = EditTally.of(state).with_losses(losses)
        if not tally.learned:
            raise UserError("defer: the loss of every edit is not a number", fix="choose a smaller `lr`")
        reads: Reads = "prompt" if self.hparams.query == "prompt_last" else "sequence"
        kept = {**gate.requires_grad_(False).state(), **tally.state()}
        return RoutedModel(model, self.hparams.layer, gate, reads, tally.diagnostics(), kept)
