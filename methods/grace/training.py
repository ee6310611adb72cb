"""How GRACE reads its keys and learns its values: side by side, with the results of one request after the other.

Keys do not depend on the codebook, because what a layer reads lies below what the codebook changes; so the decisions are
replayed on keys that were read in batches. A value is trained on one request at a time and on nothing that another
value does, so all of them are trained together, except that those of one row keep their order.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.api import Advance
from harness.models.batching import length_sorted
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
    """What goes into the layer's matrix at the last token of each prompt, and what comes out of it.

    Returns:
        keys N × K and outputs N × D, at least fp32.
    """
    order: list[int] = []
    linear = matrix(model, hparams.layer)
    keys, outputs = ([at_least_fp32(linear.weight.new_empty(0, n))] for n in (linear.in_features, linear.out_features))
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
    """Learn all pending values; the book keeps them.

    Returns:
        The loss of each before its last step; None if the loss or a gradient was no number at some step.
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
    """Values that may be learned side by side, in an order that keeps each row's own."""
    taken: dict[int, int] = defaultdict(int)
    by_turn: dict[int, list[PendingValue]] = defaultdict(list)
    for value in pending:
        by_turn[taken[value.row]].append(value)
        taken[value.row] += 1
    return [by_turn[turn] for turn in sorted(by_turn)]


class AtLast:
    """Values at the last token of each prompt: that token and those behind it run again, in the blocks above."""

    def __init__(self, model: LoadedModel, queries: Sequence[Query], layer: int) -> None:
        rows = [PivotRow(q.prompt_ids + q.target_ids[:-1], len(q.prompt_ids) - 1, q.target_ids) for q in queries]
        pivot, above = max(row.pivot for row in rows), layer % model.n_layers + 1

        def silence(_inputs_BTK: Tensor, outputs_BTD: Tensor) -> Tensor:
            """Nothing at the pivots, so that what is added there later is all that the matrix gives."""
            columns_T1 = torch.arange(outputs_BTD.shape[1], device=outputs_BTD.device)[:, None]
            return outputs_BTD.masked_fill(columns_T1 == pivot, 0)

        with output_replaced(matrix(model, layer), silence):
            stream = enter(model, rows, above)
        self._model, self._suffix = model, Suffix(model, stream, above)
        self._dtype = stream.residual_BTD.dtype
        self._targets = Targets(queries, model.device)

    def losses(self, values_BD: Tensor) -> Tensor:
        """-log p(target token | prompt, target tokens before it), mean over each row's tokens: B."""
        hidden_BSD = self._suffix.run(values_BD.to(self._dtype))
        logits_NV = self._model.head(self._model.final_norm(hidden_BSD[tuple(self._targets.places_2N)]))
        return self._targets.losses(at_least_fp32(logits_NV))


class BeforeLast:
    """Values at all tokens of each prompt before its last."""

    def __init__(self, model: LoadedModel, queries: Sequence[Query], layer: int) -> None:
        self._paused = Paused(model, queries, layer)
        self._places_BT = places(self._paused.prompt_BT, "prompt")

    def losses(self, values_BD: Tensor) -> Tensor:
        """As `AtLast.losses`."""
        return self._paused.losses(placed(values_BD, self._paused.outputs_BTD, self._places_BT))


def _train(standing: AtLast | BeforeLast, start_BD: Tensor, hparams: GraceHparams) -> tuple[Tensor, Tensor, Tensor]:
    """Each value on its own request.

    Returns:
        Values B × D; the loss of each before the last step, B; booleans B, True where a loss or gradient was no number:
        that value stays as it was before.
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
