"""DEFER as a `Method`: requests train the same gate and value layer in order."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from harness.api import Context, EditedModel, Hparams, State
from harness.errors import UserError
from harness.memory import ANSWER_TOKENS, PROMPT_TOKENS, Memory
from harness.records import DataRef, EditRequest
from harness.registry import register
from methods.common.layers import Layer, blocks_above
from methods.common.sequential import EditTally, SequentialMethod

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel
    from harness.models.routed import Reads


class DeferHparams(Hparams):
    """Hyper-parameters of DEFER; values and their sources are in `methods/hparams/defer/`.

    Attributes:
        layer: block whose second feed-forward matrix gets the gate.
        query: token that the gate and the value layer read, in training and at inference: `prompt_last`, or `sequence_last`
            as in EasyEdit. The latter is the target's own last token in training and teacher forcing, so the answer leaks
            into the gate; in generation it is the last token so far, with the text re-encoded for each new id.
        threshold: gate activation at and above which the value replaces the output.
        lr: of Adam, which is re-initialised for each request.
        steps: optimiser steps per request.
    """

    layer: Layer
    query: Literal["prompt_last", "sequence_last"]
    threshold: float = Field(gt=0, lt=1)
    lr: float = Field(gt=0)
    steps: int = Field(ge=1)

    @property
    def passes_per_edit(self) -> float:
        """One row per step."""
        return 3.0 * self.steps

    def share_of_blocks(self, n_layers: int) -> float:
        """Those above the matrix."""
        return blocks_above(self.layer, n_layers) / n_layers

    @property
    def steps_per_edit(self) -> float:
        """Edits are trained one by one."""
        return self.steps


@register("defer", title="DEFER", family="memory", version=2)
class Defer(SequentialMethod):
    """A gate reads one token and decides whether a learned value replaces a feed-forward matrix's output at every token.

    Training sees edits only: nothing teaches the gate which prompts to leave to the model. An untrained gate gives about
    one half for any prompt, and each edit opens it a little further for all similar prompts.
    """

    Hparams = DeferHparams
    hparams: DeferHparams

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """The value layer; its copy, gradient and Adam's state; one request from the matrix on."""
        model = target.footprint
        above = blocks_above(self.hparams.layer, model.n_layers)
        return Memory(
            kept={"value layer": model.matrix_fp32},
            edit={
                "copy, gradient and Adam": 4 * model.matrix_fp32,
                "activations": model.backward(PROMPT_TOKENS, above),
                "logits": model.logits(ANSWER_TOKENS, 4),
            },
        )

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Train the gate and the value layer on one request at a time; editing in blocks gives the same result bit for bit.

        An edit with a non-finite loss fails and is rolled back; `diagnostics` counts the failures.

        Args:
            model, requests, artifacts, context: see `Method.extend`; the seed initialises gate and value layer.
            state: gate and value layer in training precision, and the outcomes of all edits so far.

        Raises:
            UserError: if a request is longer than the model's context, or if all edits fail.
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
