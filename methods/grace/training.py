"""GRACE's keys and values, computed in batches with the same results as one request at a time.

Keys do not depend on the codebook, because a layer's input lies below what the codebook changes; keys are therefore computed
in batches, and the insertion decisions are replayed on them. Each value is trained on a single request, independently of
all other values, so values are trained together; only successive values of the same row keep their order.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.api import Advance
from harness.models.batching import length_sorted
from harness.models.linear import weight_of
from harness.models.loaded import LoadedModel
from harness.models.precision import at_least_fp32
from harness.models.routed import last_of, matrix, output_replaced
from harness.tokens import Query
from methods.common.aligned import PivotRow, Suffix, enter
from methods.common.paused import Paused, Targets
from methods.common.row_adam import RowAdam
from methods.grace.codebook import Codebook, PendingValue, placed, places
from methods.grace.editor import GraceHparams


def read(model: LoadedModel, queries: Sequence[Query], hparams: GraceHparams) -> tuple[Tensor, Tensor]:
    """Input and output of the layer's value matrix at the last token of each prompt.

    Returns:
        Keys N × K and outputs N × D, at least fp32.
    """
    order: list[int] = []
    weight_DK = weight_of(matrix(model, hparams.layer))
    outputs, keys = ([at_least_fp32(weight_DK.new_empty(0, n, device=model.device))] for n in weight_DK.shape)
    for batch in length_sorted(queries, _length, hparams.batch):
        paused = Paused(model, [queries[index] for index in batch], hparams.layer)
        rows_B, last_B = torch.arange(len(batch), device=model.device), last_of(paused.prompt_BT)
        order += batch
        keys.append(at_least_fp32(paused.inputs_BTK[rows_B, last_B]))
        outputs.append(at_least_fp32(paused.outputs_BTD[rows_B, last_B]))
    back_N = torch.tensor(order, dtype=torch.long, device=model.device).argsort()
    return torch.cat(keys)[back_N], torch.cat(outputs)[back_N]


def learn(
    model: LoadedModel,
    queries: Sequence[Query],
    book: Codebook,
    pending: Sequence[PendingValue],
    hparams: GraceHparams,
    advance: Advance,
) -> list[float | None]:
    """Learn all pending values and store them in the codebook.

    Returns:
        The loss of each before its last step; None if the loss or a gradient was not finite at some step.
    """
    losses: dict[PendingValue, float | None] = {}
    for turn in turns(pending):
        for batch in length_sorted(turn, lambda value: _length(queries[value.request]), hparams.batch):
            together = [turn[index] for index in batch]
            standing = (AtLast if hparams.replace == "last" else BeforeLast)(
                model, [queries[value.request] for value in together], hparams.layer
            )
            values_BD, losses_B, is_failed_B = _train(standing, book.start(together), hparams)
            book.learn(together, values_BD, is_failed_B)
            for value, loss, is_failed in zip(together, losses_B.tolist(), is_failed_B.tolist(), strict=True):
                losses[value] = None if is_failed else loss
            advance(len(together))
    return [losses[value] for value in pending]


def turns(pending: Sequence[PendingValue]) -> list[list[PendingValue]]:
    """Group values that can be trained together; successive values of the same row go to successive groups."""
    taken: dict[int, int] = defaultdict(int)
    by_turn: dict[int, list[PendingValue]] = defaultdict(list)
    for value in pending:
        by_turn[taken[value.row]].append(value)
        taken[value.row] += 1
    return [by_turn[turn] for turn in sorted(by_turn)]


class AtLast:
    """Values at the last token of each prompt; only this token and those after it are re-run, in the blocks above."""

    def __init__(self, model: LoadedModel, queries: Sequence[Query], layer: int) -> None:
        rows = [PivotRow(q.prompt_ids + q.target_ids[:-1], len(q.prompt_ids) - 1, q.target_ids) for q in queries]
        pivot, above = max(row.pivot for row in rows), layer % model.n_layers + 1

        def silence(_inputs_BTK: Tensor, outputs_BTD: Tensor) -> Tensor:
            """Zero the output at the pivots, so that the value added there later is the whole output."""
            columns_T1 = torch.arange(outputs_BTD.shape[1], device=outputs_BTD.device)[:, None]
            return outputs_BTD.masked_fill(columns_T1 == pivot, 0)

        with output_replaced(matrix(model, layer), silence):
            stream = enter(model, rows, above)
        self._model, self._layer, self._suffix = model, layer, Suffix(model, stream, above)
        self._dtype = stream.residual_BTD.dtype
        self._targets = Targets(queries, model.device)

    def losses(self, values_BD: Tensor) -> Tensor:
        """-log p(target token | prompt, previous target tokens), averaged over each row's tokens: B."""
        hidden_BSD = self._suffix.run(self._model.into_stream(self._layer, values_BD.to(self._dtype)))
        logits_NV = self._model.logits(self._model.final_norm(hidden_BSD[tuple(self._targets.places_2N)]))
        return self._targets.losses(at_least_fp32(logits_NV))


class BeforeLast:
    """Values at all tokens of each prompt before the last."""

    def __init__(self, model: LoadedModel, queries: Sequence[Query], layer: int) -> None:
        self._paused = Paused(model, queries, layer)
        self._places_BT = places(self._paused.prompt_BT, "prompt")

    def losses(self, values_BD: Tensor) -> Tensor:
        """Losses as in `AtLast.losses`."""
        return self._paused.losses(placed(values_BD, self._paused.outputs_BTD, self._places_BT))


def _train(standing: AtLast | BeforeLast, start_BD: Tensor, hparams: GraceHparams) -> tuple[Tensor, Tensor, Tensor]:
    """Train each value on its own request.

    Returns:
        Values B × D; the loss of each before the last step, B; booleans B, True where a loss or gradient was not finite,
        from which step on the value is frozen.
    """
    values_BD = start_BD.clone().requires_grad_(True)
    adam = RowAdam(values_BD, hparams.lr)
    is_sound_B = torch.ones(len(start_BD), dtype=torch.bool, device=start_BD.device)
    for _ in range(hparams.steps):
        losses_B = standing.losses(values_BD)
        (gradient_BD,) = torch.autograd.grad(losses_B.sum(), values_BD)
        is_sound_B &= losses_B.isfinite() & gradient_BD.isfinite().all(-1)
        adam.step(gradient_BD, is_sound_B)
    return values_BD.detach(), losses_B.detach(), ~is_sound_B


def _length(query: Query) -> int:
    return len(query.prompt_ids) + len(query.target_ids)
