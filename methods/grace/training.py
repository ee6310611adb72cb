"""How GRACE reads its keys and learns its values: side by side, with the results of one request after the other.

Keys do not depend on the codebook, because what a layer reads lies below what the codebook changes; so the decisions are
replayed on keys that were read in batches. A value is trained on one request at a time and on nothing that another
value does, so all of them are trained together, except that lessons of one row keep their order.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.api import Advance
from harness.models.batching import length_sorted
from harness.models.loaded import LoadedModel
from harness.models.precision import at_least_fp32
from harness.models.routed import last_of, matrix
from harness.tokens import Query
from methods.common.paused import Paused
from methods.common.row_adam import RowAdam
from methods.grace.codebook import Codebook, Lesson
from methods.grace.hparams import GraceHparams
from methods.grace.standing import AtLast, BeforeLast


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
    lessons: Sequence[Lesson],
    hparams: GraceHparams,
    advance: Advance,
) -> list[float | None]:
    """Learn all lessons; the book keeps the values.

    Returns:
        The loss of each before its last step; None if the loss or a gradient was no number at some step.
    """
    losses: dict[Lesson, float | None] = {}
    for turn in turns(lessons):
        for batch in length_sorted(turn, lambda lesson: _length(queries[lesson.request]), hparams.batch):
            together = [turn[index] for index in batch]
            standing = (AtLast if hparams.replace == "last" else BeforeLast)(
                model, [queries[lesson.request] for lesson in together], hparams.layer
            )
            values_BD, losses_B, is_failed_B = _train(standing, book.start(together), hparams)
            book.learn(together, values_BD, is_failed_B)
            for lesson, loss, is_failed in zip(together, losses_B.tolist(), is_failed_B.tolist(), strict=True):
                losses[lesson] = None if is_failed else loss
            advance(len(together))
    return [losses[lesson] for lesson in lessons]


def turns(lessons: Sequence[Lesson]) -> list[list[Lesson]]:
    """Lessons that may be learned side by side, in an order that keeps each row's own."""
    taken: dict[int, int] = defaultdict(int)
    by_turn: dict[int, list[Lesson]] = defaultdict(list)
    for lesson in lessons:
        by_turn[taken[lesson.row]].append(lesson)
        taken[lesson.row] += 1
    return [by_turn[turn] for turn in sorted(by_turn)]


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
