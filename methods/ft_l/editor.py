"""FT-L as a `Method`: the requests are split into calls, and each call fine-tunes on its batch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from harness.api import Context, EditedModel, Hparams, State
from harness.records import EditRequest
from harness.registry import register
from methods.common import Implementation
from methods.common.sequential import SequentialMethod
from methods.ft_l.rows import OBJECTIVES, ScoredRow, faithful_rows

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel
    from methods.ft_l.training import Masters


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

    layer: int = Field(ge=0)
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

    @model_validator(mode="after")
    def _faithful_to_one_objective(self) -> Self:
        if self.implementation == "faithful-easyedit" and self.objective != "prompt_last":
            raise ValueError("implementation 'faithful-easyedit' supports only objective 'prompt_last'")
        return self


@register("ft-l", title="FT-L", family="weights", version=3)
class FtL(SequentialMethod):
    """Fine-tune W so that the last prompt position predicts the target's tokens.

    With several target tokens, the optimum of `prompt_last` spreads probability over all of them at that one position,
    and continuation tokens are never trained: reliability on long targets is limited by how well the model continues
    the target by itself.
    """

    Hparams = FtLHparams
    hparams: FtLHparams

    def extend(
        self,
        model: "LoadedModel",
        state: State,
        requests: Sequence[EditRequest],
        artifacts: Mapping[str, Path],
        context: Context,
    ) -> EditedModel:
        """Train W in calls of `batch` requests each; editing in blocks gives the same result bit for bit.

        Args:
            model, requests, artifacts, context: see `Method.extend`.
            state: W before rounding to the model's precision; empty if that precision is at least fp32.

        Raises:
            UserError: if a request is longer than the model's context, or the loss is not finite; the weights are then
                restored.
        """
        from harness.models.edited import WeightEditedModel
        from harness.models.weights import Snapshot
        from methods.ft_l.training import Masters

        names = self._trained(model)
        snapshot = Snapshot(model.model, names)
        masters = Masters([model.model.get_parameter(name) for name in names], [state[name] for name in names if state])
        ends = []
        with (
            context.progress(self.spec.title, len(requests)) as advance,
            snapshot.restored_on_error(),
            context.clock.phase("edit"),
        ):
            for start in range(0, len(requests), self.hparams.batch):
                call = requests[start : start + self.hparams.batch]
                ends.append(self._train(model, masters, self._rows(model, call)))
                advance(len(call))
        diagnostics = {**({"final_loss": sum(ends) / len(ends)} if ends else {}), **masters.diagnostics()}
        return WeightEditedModel(model, snapshot.restore, diagnostics, masters.state(names))

    def _trained(self, model: "LoadedModel") -> list[str]:
        """Names of the trained parameters."""
        name, _ = model.value_matrix(self.hparams.layer)
        if self.hparams.implementation == "corrected":
            return [name]
        owner = name.removesuffix("weight")
        return [name for name, _ in model.model.named_parameters() if name.startswith(owner)]

    def _rows(self, model: "LoadedModel", requests: Sequence[EditRequest]) -> list[ScoredRow]:
        """Tokenised rows of the requests of one call."""
        from methods.common.paused import edit_queries

        queries = edit_queries(model, requests)
        if self.hparams.implementation == "faithful-easyedit":
            return faithful_rows(model.tokenizer, requests)
        return [OBJECTIVES[self.hparams.objective](query) for query in queries]

    def _train(self, model: "LoadedModel", masters: "Masters", rows: Sequence[ScoredRow]) -> float:
        """Run one call and return its final loss."""
        from methods.ft_l.training import batches, train

        call = batches(model, rows, self.hparams.layer, self.hparams.micro_batch)
        return train(model, masters, call, self.hparams)
