"""FT-L as a `Method`: the requests are split into calls, and each call fine-tunes on its batch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from harness.api import ArtifactSpec, Context, EditedModel, Hparams, Method
from harness.errors import UserError
from harness.memory import ANSWER_TOKENS, PROMPT_TOKENS, Memory
from harness.records import DataRef, EditRequest
from harness.registry import register
from methods.common import Implementation, require_layers
from methods.common.layers import Layer, blocks_above
from methods.ft_l.rows import OBJECTIVES, ScoredRow, faithful_rows

if TYPE_CHECKING:
    from torch import nn

    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel
    from methods.ft_l.training import PreparedBatch


class FtLHparams(Hparams):
    """Hyper-parameters of FT-L; values and their sources are in `methods/hparams/ft-l/`.

    Attributes:
        layer: block whose feed-forward output matrix W is trained.
        lr, weight_decay: of Adam, which is re-initialised for each call.
        steps: maximum number of optimiser steps per call.
        batch: edits per call; successive calls train the same weights (the paper: five calls of 200).
        micro_batch: rows per backward pass; affects memory, and results only through rounding.
        norm_constraint: W stays within this L∞ distance of its value at the start of the call, in fp32; None for no bound.
        objective: `prompt_last` scores all target tokens at the last prompt position, `target_new` scores each target
            token given the ones before it.
        loss_stop: a call ends when its mean loss falls below this.
        implementation: `corrected`, or `faithful-easyedit`, which reproduces what `rows.faithful_rows` describes and, on
            GPT-J, also trains the bias of the same layer, which EasyEdit's match on parameter names includes.
    """

    layer: Layer
    lr: float = Field(gt=0)
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    micro_batch: int = Field(ge=1)
    norm_constraint: float | None = Field(gt=0)
    objective: Literal["prompt_last", "target_new"]
    weight_decay: float = Field(ge=0)
    loss_stop: float = Field(ge=0)
    implementation: Implementation = "corrected"

    @property
    def passes_per_edit(self) -> float:
        """Each step of a call passes all its edits."""
        return 3.0 * self.steps

    def share_of_blocks(self, n_layers: int) -> float:
        """From the edited block on."""
        return blocks_above(self.layer, n_layers, including=True) / n_layers

    @model_validator(mode="after")
    def _faithful_to_one_objective(self) -> Self:
        if self.implementation == "faithful-easyedit" and self.objective != "prompt_last":
            raise ValueError("implementation 'faithful-easyedit' supports only objective 'prompt_last'")
        return self


@register("ft-l", title="FT-L", family="weights", version=5)
class FtL(Method):
    """Fine-tune W so that the last prompt position predicts the target's tokens.

    With several target tokens, the optimum of `prompt_last` spreads probability over all of them at that one position,
    and continuation tokens are never trained: reliability on long targets is limited by how well the model continues
    the target by itself.
    """

    Hparams = FtLHparams
    hparams: FtLHparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """None.

        Raises:
            UserError: if the model has no such layer.
        """
        if "layer" not in self.hparams.choices():
            require_layers(target, [int(self.hparams.layer)])
        return {}

    @property
    def edits_together(self) -> bool:
        """Yes: a call takes steps until the mean loss of its edits is low."""
        return True

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """W with Adam's state and temporaries, the streams of a whole call, and one micro-batch from W's block on."""
        hparams, model = self.hparams, target.footprint
        rows = min(hparams.micro_batch, hparams.batch, data.edits)
        above = blocks_above(hparams.layer, model.n_layers, including=True)
        labels = 1 if hparams.objective == "prompt_last" else ANSWER_TOKENS
        copies = 5 + 3 * (hparams.norm_constraint is not None)
        return Memory(
            kept={"edited matrix": model.edited_matrix},
            edit={
                "gradient and Adam": copies * model.matrix_fp32,
                "streams": model.streams(min(hparams.batch, data.edits) * PROMPT_TOKENS),
                "activations": model.backward(rows * PROMPT_TOKENS, above),
                "logits": model.logits(rows * labels, 4),
            },
        )

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Train W, in float32, in calls of `batch` requests each; editing in blocks gives the same result bit for bit.

        Raises:
            UserError: if a request is longer than the model's context, or a loss is not finite; the weights are then restored.
        """
        from harness.models.edited import WeightEditedModel
        from harness.models.weights import widened
        from methods.ft_l.training import mean_loss

        path = model.path(model.layout.value_matrix, self.hparams.layer)
        module = widened(model.model, [path])
        ends = []
        with context.progress(self.spec.title, len(requests)) as advance, module.restored_on_error():
            trained = self._trained(model)
            with context.clock.phase("edit"):
                for start in range(0, len(requests), self.hparams.batch):
                    rows = self._rows(model, requests[start : start + self.hparams.batch])
                    end, call = self._train(model, trained, rows)
                    ends.append(end)
                    advance(len(rows))
            if requests and not math.isfinite(mean_loss(model, call)):
                raise UserError("ft-l: the loss is not a number after the last step", fix="choose a smaller `lr`")
        final = {"final_loss": sum(ends) / len(ends)} if ends else {}
        diagnostics = {**final, "change_norm": module.change_norm()}
        return WeightEditedModel(model, module.restore, diagnostics)

    def _trained(self, model: "LoadedModel") -> "list[nn.Parameter]":
        """W; in the faithful implementation, also what else its module has."""
        name, _ = model.value_matrix(self.hparams.layer)
        if self.hparams.implementation == "corrected":
            return [model.model.get_parameter(name)]
        return list(model.module(model.layout.value_matrix, self.hparams.layer).parameters())

    def _rows(self, model: "LoadedModel", requests: Sequence[EditRequest]) -> list[ScoredRow]:
        """Tokenised rows of the requests of one call."""
        from methods.common.paused import edit_queries

        queries = edit_queries(model, requests)
        if self.hparams.implementation == "faithful-easyedit":
            return faithful_rows(model.tokenizer, requests)
        return [OBJECTIVES[self.hparams.objective](query) for query in queries]

    def _train(
        self, model: "LoadedModel", trained: "Sequence[nn.Parameter]", rows: Sequence[ScoredRow]
    ) -> "tuple[float, Sequence[PreparedBatch]]":
        """Run one call; return its loss before the last step, and its batches."""
        from methods.ft_l.training import batches, train

        call = batches(model, rows, self.hparams.layer, self.hparams.micro_batch)
        return train(model, trained, call, self.hparams), call
