"""LoRA: fine-tune low-rank updates of linear layers on the edits, merged into the weights (Hu et al. 2021)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from harness.api import Context, EditedModel, Hparams, Method
from harness.errors import UserError
from harness.memory import ANSWER_TOKENS, PROMPT_TOKENS, Memory
from harness.records import DataRef, EditRequest
from harness.registry import register
from methods.common import Implementation

if TYPE_CHECKING:
    from torch import nn

    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel
    from methods.common.prediction import PredictionRow


class LoraHparams(Hparams):
    """Hyper-parameters of LoRA; values and their sources are in `methods/hparams/lora/`.

    Attributes:
        rank: of the update of each matrix.
        matrices: names of the linear layers that are trained in all blocks, such as `q_proj`; null for all of attention and
            feed-forward.
        scale: factor of the updates, α / rank in the paper's notation.
        lr, weight_decay: of AdamW, which is re-initialised for each call.
        steps: maximum number of optimiser steps per call, each on all its edits.
        batch: edits per call; the updates of a call are merged into the weights that the next one trains.
        micro_batch: rows per backward pass; affects memory, and results only through rounding.
        loss_stop: a call ends when its mean loss falls below this.
        implementation: `corrected` averages over the edits of a call. `faithful-easyedit` averages over all of their tokens, and
            the calls of an edit run train the same updates (lora_main.py:66), which are merged after the last one.
    """

    rank: int = Field(ge=1)
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0)
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    micro_batch: int = Field(ge=1)
    loss_stop: float = Field(ge=0)
    implementation: Implementation = "corrected"
    matrices: tuple[str, ...] | None = Field(None, min_length=1)
    scale: float = Field(2.0, gt=0)

    def identity(self) -> dict[str, Any]:
        """All values; `matrices` and `scale` only if they are not the defaults, as in cells from before they existed."""
        defaults = {"matrices": None, "scale": 2.0}
        return {
            key: value for key, value in super().identity().items() if key not in defaults or value != defaults[key]
        }

    @property
    def passes_per_edit(self) -> float:
        """Each step of a call passes all its edits."""
        return 3.0 * self.steps


@register("lora", title="LoRA", family="weights", version=2)
class Lora(Method):
    """Train low-rank updates of attention and feed-forward layers until the targets are likely, given the prompts."""

    Hparams = LoraHparams
    hparams: LoraHparams

    @property
    def edits_together(self) -> bool:
        """Yes: steps are taken until the mean loss of all edits is low."""
        return True

    def memory(self, target: "ModelRef", data: DataRef, eval_batch: int) -> Memory:
        """Copies of all blocks, one micro-batch through the whole model, and the updates with Adam's state, which are small.

        With few `matrices`, an upper bound.
        """
        model, rows = target.footprint, min(self.hparams.micro_batch, self.hparams.batch, data.edits)
        factors = model.n_layers * 7 * 2 * (model.hidden + model.ffn) * self.hparams.rank * 4
        return Memory(
            kept={
                "edited matrices": model.weights * model.edited_matrix / (model.hidden * model.ffn * model.entry_bytes)
            },
            edit={
                "updates with gradient and Adam": 4.0 * factors,
                "activations": model.backward(rows * PROMPT_TOKENS, model.n_layers),
                "logits": model.logits(rows * ANSWER_TOKENS, 4),
            },
        )

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Train in calls of `batch` requests each; editing in blocks gives the same result bit for bit.

        Raises:
            UserError: if a request is longer than the model's context, the model has none of the matrices, or the loss is not
                finite; the weights are then restored.
        """
        import torch

        from harness.models.edited import WeightEditedModel
        from harness.models.weights import widened
        from methods.common.lora import block_linears, low_rank
        from methods.common.paused import edit_queries
        from methods.common.prediction import edit_row

        names = {part: name for name, part in model.model.named_modules()}
        linears = block_linears(model, self.hparams.matrices)
        weights = widened(model.model, [names[linear] for linear in linears])
        ends = []
        with (
            context.progress(self.spec.title, len(requests)) as advance,
            weights.restored_on_error(),
            context.clock.phase("edit"),
        ):
            rows = [edit_row(model, query, "corrected") for query in edit_queries(model, requests)]
            calls = [rows[start : start + self.hparams.batch] for start in range(0, len(rows), self.hparams.batch)]
            are_one = self.hparams.implementation == "faithful-easyedit"
            for together in [calls] if are_one and calls else [[call] for call in calls]:
                generator = torch.Generator().manual_seed(context.seed)
                with low_rank(linears, self.hparams.rank, generator, self.hparams.scale) as updates:
                    for call in together:
                        ends.append(self._train(model, updates, call))
                        advance(len(call))
        diagnostics = {"final_loss": sum(ends) / len(ends)} if ends else {}
        return WeightEditedModel(model, weights.restore, diagnostics)

    def _train(self, model: "LoadedModel", updates: "Sequence[nn.Parameter]", rows: "Sequence[PredictionRow]") -> float:
        """Minimise the mean of -log p of the targets' tokens; return it before the last step."""
        import torch

        from harness.models.batching import length_sorted
        from harness.models.submodels import logits_at, streams_of
        from methods.common.factors import label_losses, places_of
        from methods.common.prediction import padded

        is_mean_of_tokens = self.hparams.implementation == "faithful-easyedit"
        whole = sum(len(row.labels) for row in rows) if is_mean_of_tokens else len(rows)
        parts = [
            [rows[index] for index in chosen]
            for chosen in length_sorted(rows, lambda row: len(row.ids), self.hparams.micro_batch)
        ]
        entering = [streams_of(model, padded(part, model.device), 0) for part in parts]
        adam = torch.optim.AdamW(updates, lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)
        value = 0.0
        for step in range(self.hparams.steps):
            adam.zero_grad()
            value = 0.0
            for part, streams in zip(parts, entering, strict=True):
                losses_B = label_losses(logits_at(model, streams, 0, places_of(part)), part)
                if is_mean_of_tokens:
                    losses_B = losses_B * losses_B.new_tensor([len(row.labels) for row in part])
                loss = losses_B.sum()
                loss.backward()  # type: ignore[no-untyped-call]
                value += float(loss.detach()) / whole
            for gradient in (update.grad for update in updates if update.grad is not None):
                gradient /= whole  # of the float32 sum: before the backward pass, it could underflow in float16
            if not value < float("inf"):
                raise UserError(f"lora: the loss is not a number at step {step}", fix=f"lr: {self.hparams.lr / 3:.1g}")
            if value < self.hparams.loss_stop:
                break
            adam.step()
        return value
