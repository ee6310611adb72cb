"""FT-L's optimisation: each call trains the matrix on a batch of requests; the frozen blocks below it run only once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.models.batching import length_sorted, right_padded
from harness.models.loaded import LoadedModel
from harness.models.precision import at_least_fp32
from harness.models.submodels import Streams, logits_at, streams_of
from methods.ft_l.editor import FtLHparams
from methods.ft_l.rows import ScoredRow


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """Rows with the outputs of the frozen blocks already computed.

    Attributes:
        layer: the block that takes `streams` as input; it holds the trained matrix.
        places: row and column of each of the P positions whose logits are read.
        at_M, ids_M, weights_M: index into `places`, id and weight of each of the M scored ids; the weights of all batches
            of a call add up to 1.
    """

    layer: int
    streams: Streams
    places: tuple[tuple[int, int], ...]
    at_M: Tensor
    ids_M: Tensor
    weights_M: Tensor


def batches(model: LoadedModel, rows: Sequence[ScoredRow], layer: int, size: int) -> list[PreparedBatch]:
    """Batch a call's rows by similar length and run them up to `layer`; rows have equal weight, as do labels within a row."""
    return [
        _batch(model, [rows[index] for index in chosen], layer, len(rows))
        for chosen in length_sorted(rows, lambda row: len(row.ids), size)
    ]


def _batch(model: LoadedModel, rows: Sequence[ScoredRow], layer: int, rows_of_call: int) -> PreparedBatch:
    padded = right_padded([row.ids for row in rows], model.device)
    for index, row in enumerate(rows):
        padded.mask_BT[index, : row.padding] = 0
    labels = [
        ((index, column), token, 1 / (len(row.labels) * rows_of_call))
        for index, row in enumerate(rows)
        for column, token in row.labels
    ]
    number = {place: n for n, place in enumerate(dict.fromkeys(place for place, _, _ in labels))}
    return PreparedBatch(
        layer,
        streams_of(model, padded, layer),
        tuple(number),
        torch.tensor([number[place] for place, _, _ in labels], device=model.device),
        torch.tensor([token for _, token, _ in labels], device=model.device),
        torch.tensor([weight for _, _, weight in labels], device=model.device, dtype=torch.float64),
    )


def loss(model: LoadedModel, batch: PreparedBatch) -> Tensor:
    """-Σ weight · log p(id) over the labels of a batch.

    Returns:
        A differentiable scalar, at least fp32.
    """
    log_probs_PV = logits_at(model, batch.streams, batch.layer, batch.places).log_softmax(-1)
    picked_M = log_probs_PV[batch.at_M, batch.ids_M]
    return -(picked_M * batch.weights_M.to(picked_M.dtype)).sum()


class Masters:
    """Master copies of the trained parameters in at least fp32; the optimiser and the norm constraint act on these.

    The model runs in its own precision, rounded from the master copies after each step: the trained weights are the ones
    that are evaluated, and steps too small to show in bf16 still accumulate.

    Args:
        parameters: the trained parameters of the model.
        kept: master copies of an earlier edit, whose rounded values the parameters hold; by default the parameters.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], kept: Sequence[Tensor] = ()) -> None:
        self.parameters = tuple(parameters)
        self._unedited = [parameter.detach().clone() for parameter in self.parameters]
        self.values = [at_least_fp32(start).clone() for start in kept or self._unedited]

    @torch.no_grad()
    def publish(self) -> None:
        """Write the master copies into the model, rounded to its precision."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.copy_(value)

    def state(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Master copies by name, only where their precision differs from the parameter's. Not cloned."""
        of = zip(names, self.parameters, self.values, strict=True)
        return {name: value for name, parameter, value in of if value.dtype != parameter.dtype}

    @torch.no_grad()
    def diagnostics(self) -> dict[str, float]:
        """Frobenius norm of the total change, and the fraction of it lost by rounding to the model's precision."""
        moved = math.hypot(*(_distance(v, start) for v, start in zip(self.values, self._unedited, strict=True)))
        lost = math.hypot(*(_distance(v, shown) for v, shown in zip(self.values, self.parameters, strict=True)))
        return {"change_norm": moved, "change_lost_in_rounding": lost / moved if moved else 0.0}


def _distance(value: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(value - other))


def train(model: LoadedModel, masters: Masters, call: Sequence[PreparedBatch], hparams: FtLHparams) -> float:
    """Train the parameters until the loss of the call is below `loss_stop` or the steps are used up.

    Args:
        model: the model that the parameters of `masters` belong to.
        masters: the starting point; Adam's state and the norm constraint are re-initialised for each call.
        call: all batches of the call; each step accumulates their gradients.
        hparams: learning rate, steps, norm constraint and stopping threshold.

    Returns:
        The final loss.

    Raises:
        UserError: if the loss is not finite; the caller restores the weights.
    """
    bound = hparams.norm_constraint
    starts = [value.clone() for value in masters.values] if bound is not None else []
    adam = torch.optim.Adam(masters.values, lr=hparams.lr, weight_decay=hparams.weight_decay)
    for parameter in masters.parameters:
        parameter.requires_grad_(True)
    try:
        for step in range(hparams.steps):
            value = _finite(_add_gradients(model, masters, call), step)
            if value < hparams.loss_stop:
                return value
            adam.step()
            adam.zero_grad()
            if bound is not None:
                for master, start in zip(masters.values, starts, strict=True):
                    master.clamp_(min=start - bound, max=start + bound)
            masters.publish()
        with torch.no_grad():
            return _finite(sum(loss(model, batch).item() for batch in call), hparams.steps)
    finally:
        for parameter in masters.parameters:
            parameter.requires_grad_(False)
        for master in masters.values:
            master.grad = None


def _add_gradients(model: LoadedModel, masters: Masters, call: Sequence[PreparedBatch]) -> float:
    """Return the loss of a call and accumulate its gradient in the master copies, summed over batches in their precision."""
    total: list[Tensor] = []
    for batch in call:
        part = loss(model, batch)
        gradients = torch.autograd.grad(part, masters.parameters)
        for master, gradient in zip(masters.values, gradients, strict=True):
            gradient = gradient.to(master.dtype)
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
        total.append(part.detach())
    return float(torch.stack(total).sum())


def _finite(value: float, step: int) -> float:
    if not math.isfinite(value):
        raise UserError(f"ft-l: the loss is not a number at step {step}", fix="choose a smaller `lr`")
    return value
