"""FT-L's optimisation: each call trains the matrix on a batch of requests; the frozen blocks below it run only once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.models.batching import length_sorted, right_padded
from harness.models.loaded import LoadedModel
from harness.models.submodels import Streams, logits_at, streams_of
from methods.ft_l.editor import FtLHparams
from methods.ft_l.rows import ScoredRow


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """Rows with the outputs of the frozen blocks already computed.

    Attributes:
        layer: the block that takes `streams` as input; it holds the trained matrix.
        places: row and column of each of the P positions whose logits are read.
        at_M, ids_M, weights_M: index into `places`, id and weight of each of the M scored ids; the weights of a row add up
            to 1.
        rows: number of rows.
    """

    layer: int
    streams: Streams
    places: tuple[tuple[int, int], ...]
    at_M: Tensor
    ids_M: Tensor
    weights_M: Tensor
    rows: int


def batches(model: LoadedModel, rows: Sequence[ScoredRow], layer: int, size: int) -> list[PreparedBatch]:
    """Batch a call's rows by similar length and run them up to `layer`; the labels of a row have equal weight."""
    return [
        _batch(model, [rows[index] for index in chosen], layer)
        for chosen in length_sorted(rows, lambda row: len(row.ids), size)
    ]


def _batch(model: LoadedModel, rows: Sequence[ScoredRow], layer: int) -> PreparedBatch:
    padded = right_padded([row.ids for row in rows], model.device)
    for index, row in enumerate(rows):
        padded.mask_BT[index, : row.padding] = 0
    labels = [
        ((index, column), token, 1 / len(row.labels)) for index, row in enumerate(rows) for column, token in row.labels
    ]
    number = {place: n for n, place in enumerate(dict.fromkeys(place for place, _, _ in labels))}
    return PreparedBatch(
        layer,
        streams_of(model, padded, layer),
        tuple(number),
        torch.tensor([number[place] for place, _, _ in labels], device=model.device),
        torch.tensor([token for _, token, _ in labels], device=model.device),
        torch.tensor([weight for _, _, weight in labels], device=model.device, dtype=torch.float64),
        len(rows),
    )


def loss(model: LoadedModel, batch: PreparedBatch) -> Tensor:
    """-Σ weight · log p(id) over the labels of a batch: the sum of its rows' losses.

    Returns:
        A differentiable scalar, at least fp32.
    """
    log_probs_PV = logits_at(model, batch.streams, batch.layer, batch.places).log_softmax(-1)
    picked_M = log_probs_PV[batch.at_M, batch.ids_M]
    return -(picked_M * batch.weights_M.to(picked_M.dtype)).sum()


def train(
    model: LoadedModel, parameters: Sequence[nn.Parameter], call: Sequence[PreparedBatch], hparams: FtLHparams
) -> float:
    """Train the parameters until the loss of the call is below `loss_stop` or the steps are used up.

    Args:
        model: the model that the parameters belong to.
        parameters: what is trained, in at least fp32; Adam's state and the norm constraint are re-initialised for each call.
        call: all batches of the call; each step accumulates their gradients.
        hparams: learning rate, steps, norm constraint and stopping threshold.

    Returns:
        The loss before the last step, or the one below `loss_stop`.

    Raises:
        UserError: if a loss is not finite; the caller restores the weights.
    """
    bound = hparams.norm_constraint
    starts = [parameter.detach().clone() for parameter in parameters] if bound is not None else []
    adam = torch.optim.Adam(parameters, lr=hparams.lr, weight_decay=hparams.weight_decay)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        for step in range(hparams.steps):
            value = _add_gradients(model, parameters, call)
            if not math.isfinite(value):
                raise UserError(f"ft-l: the loss is not a number at step {step}", fix="choose a smaller `lr`")
            if value < hparams.loss_stop:
                break
            adam.step()
            adam.zero_grad()
            if bound is not None:
                with torch.no_grad():
                    for parameter, start in zip(parameters, starts, strict=True):
                        parameter.clamp_(min=start - bound, max=start + bound)
        return value
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)
            parameter.grad = None


def mean_loss(model: LoadedModel, call: Sequence[PreparedBatch]) -> float:
    """Mean loss of a call's rows."""
    with torch.no_grad():
        return float(sum(loss(model, batch) for batch in call)) / sum(batch.rows for batch in call)


def _add_gradients(model: LoadedModel, parameters: Sequence[nn.Parameter], call: Sequence[PreparedBatch]) -> float:
    """Return the mean loss of a call's rows and accumulate its gradient.

    The mean is taken of the accumulated gradient: a factor 1 / rows before the backward pass would push gradients out of
    float16's range in a half-precision model.
    """
    total: list[Tensor] = []
    for batch in call:
        part = loss(model, batch)
        gradients = torch.autograd.grad(part, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        total.append(part.detach())
    rows = sum(batch.rows for batch in call)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(rows)
    return float(torch.stack(total).sum()) / rows
