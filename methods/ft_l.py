"""FT-L: constrained fine-tuning of one feed-forward output matrix (Zhu et al. 2020; "FT+L" of Meng et al. 2022)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from harness.errors import UserError
from harness.records import DataRef, EditRequest
from harness.tokens import Query, joint_query
from methods.base import ArtifactSpec, Context, EditedModel, Hparams, MethodSpec
from methods.registry import register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel


class FtLHparams(Hparams):
    """Hyper-parameters of FT-L.

    Attributes:
        layer: block whose feed-forward output matrix W is trained.
        lr, weight_decay: of Adam, which starts afresh in each call.
        steps: upper limit of optimiser steps per call.
        batch: edits per call; calls follow one another on the same weights (the paper: five of 200).
        micro_batch: rows per backward pass; changes memory only.
        norm_constraint: W stays within this L∞ distance of its value at the start of the call; None for no bound.
        objective: all target tokens are scored at the last prompt position.
        loss_stop: a call ends when its mean loss falls below this.
    """

    layer: int = Field(ge=0)
    lr: float = Field(gt=0)
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    micro_batch: int = Field(ge=1)
    norm_constraint: float | None = Field(gt=0)
    objective: Literal["prompt_last"]
    weight_decay: float = Field(ge=0)
    loss_stop: float = Field(ge=0)


@register
class FtL:
    """Fine-tunes W so that the last prompt position predicts the target's tokens.

    With several target tokens the optimum spreads probability over all of them at that one position, and continuation
    tokens are never trained: reliability on long targets is bounded by what the model continues correctly by itself.
    """

    spec: ClassVar[MethodSpec] = MethodSpec("ft-l", "FT-L", family="weights", version=1)
    Hparams: ClassVar[type[Hparams]] = FtLHparams

    def __init__(self, hparams: FtLHparams) -> None:
        self.hparams = hparams

    def artifacts(self, target: "ModelRef", data: DataRef, seed: int) -> Mapping[str, ArtifactSpec]:
        """Nothing is needed beforehand."""
        return {}

    def edit(
        self, model: "LoadedModel", requests: Sequence[EditRequest], artifacts: Mapping[str, Path], context: Context
    ) -> EditedModel:
        """Train W on calls of `batch` requests each.

        Raises:
            UserError: when the loss is no longer a number; the model is as it was.
        """
        from methods.common.plain import PlainModel
        from methods.common.weights import Snapshot

        name, parameter = model.value_matrix(self.hparams.layer)
        queries = [joint_query(model.tokenizer, r.prompt, r.target_new) for r in requests]
        snapshot = Snapshot(model.model, [name])
        with (
            context.progress("FT-L", len(queries)) as advance,
            snapshot.restored_on_error(),
            context.clock.phase("edit"),
        ):
            for call in _chunks(queries, self.hparams.batch):
                self._train(model, parameter, call)
                advance(len(call))
        return PlainModel(model, on_revert=snapshot.restore)

    def _train(self, model: "LoadedModel", weight: "nn.Parameter", queries: Sequence[Query]) -> None:
        import torch

        start = weight.detach().clone()
        bound = self.hparams.norm_constraint
        weight.requires_grad_(True)
        adam = torch.optim.Adam([weight], lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)
        try:
            for step in range(self.hparams.steps):
                adam.zero_grad(set_to_none=True)
                loss = 0.0
                for chunk in _chunks(queries, self.hparams.micro_batch):
                    part = prompt_last_loss(model, chunk) * (len(chunk) / len(queries))
                    part.backward()  # type: ignore[no-untyped-call]
                    loss += part.item()
                if loss != loss:
                    raise UserError(f"ft-l: the loss is not a number at step {step}", fix="choose a smaller `lr`")
                if loss < self.hparams.loss_stop:
                    break
                adam.step()
                if bound is not None:
                    with torch.no_grad():
                        weight.clamp_(min=start - bound, max=start + bound)
        finally:
            weight.grad = None
            weight.requires_grad_(False)


def prompt_last_loss(model: "LoadedModel", queries: Sequence[Query]) -> "Tensor":
    """-1/A Σ_t log p(y_t | prompt) at the last prompt position, mean over queries (ROME's FT+L).

    Args:
        queries: prompts of any lengths with targets of A ≥ 1 tokens.

    Returns:
        A scalar with gradient.
    """
    import torch

    from harness.models.batching import left_padded

    batch = left_padded([q.prompt_ids for q in queries], model.device)
    logits_BV = model.model(
        input_ids=batch.ids_BT,
        attention_mask=batch.mask_BT,
        position_ids=batch.positions_BT,
        use_cache=False,
        logits_to_keep=1,
    ).logits[:, -1]
    at_least_fp32 = torch.promote_types(logits_BV.dtype, torch.float32)
    log_probs_BV = torch.log_softmax(logits_BV, dim=-1, dtype=at_least_fp32)
    losses = [
        -log_probs_BV[row, torch.tensor(query.target_ids, device=model.device)].mean()
        for row, query in enumerate(queries)
    ]
    return torch.stack(losses).mean()


def _chunks(queries: Sequence[Query], size: int) -> Iterator[Sequence[Query]]:
    return (queries[start : start + size] for start in range(0, len(queries), size))
