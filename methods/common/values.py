"""Value optimisation: find the vector to add at the subject's last token so that the model states a new fact.

ROME adds it to the output of a block's value matrix, MEMIT to the residual stream after the block. Unless the model
normalises that output, the resulting stream is the same, and one optimisation (ROME eq. 4) serves both; they differ in the
norm that limits the vector. Requests are batched.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from harness.errors import UserError
from harness.models.precision import working_dtype
from methods.common.aligned import Captured, Stream, Suffix, through
from methods.common.closed_form import ValueHparams
from methods.common.rewrites import Rewrite
from methods.common.row_adam import RowAdam

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

Scale: TypeAlias = Literal["value", "stream"]
"""Vector whose norm at the plain prompt limits δ: the output of the value matrix (ROME), or the stream after the block (MEMIT)."""


@dataclass(slots=True)
class Values:
    """Optimised vectors of N requests.

    Attributes:
        delta_ND: the vectors δ, at least float32.
        loss_N: last loss, penalties included.
        nll_N: its target term: mean of -log p over contexts and tokens.
        steps_N: number of updates.
    """

    delta_ND: Tensor
    loss_N: list[float]
    nll_N: list[float]
    steps_N: list[int]

    @property
    def probability(self) -> float:
        """Geometric mean probability of the target tokens, averaged over requests."""
        return sum(math.exp(-nll) for nll in self.nll_N) / len(self.nll_N)


def solve(
    model: "LoadedModel", rewrites: Sequence[Rewrite], stream: Stream, layer: int, hparams: ValueHparams, scale: Scale
) -> tuple[Stream, Captured, Values]:
    """Run one block, and optimise what its value matrix should output in addition so that the model states N facts.

    If the model normalises that output, δ is optimised before the norm, and the scale is always that of the value.

    Args:
        model, hparams: as for `optimise`.
        rewrites: N requests with equally many rows each.
        stream: all their rows, request by request, at the input of `layer`.
        layer: the block.
        scale: which norm limits δ.

    Returns:
        The stream after the block, and its keys and values at the subject's last token, all without δ, and δ.
    """
    behind, went = through(model, stream, layer)
    plain, is_normed = slice(None, None, len(rewrites[0].rows)), model.layout.value_norm is not None
    limiting_ND = (went.values_BV if is_normed or scale == "value" else behind.at_pivot_BD)[plain]
    entering, at = (stream, layer) if is_normed else (behind, layer + 1)
    return behind, went, optimise(model, rewrites, entering, at, limiting_ND.norm(dim=-1), hparams, is_normed)


def rescaled(value_D: Tensor, delta_D: Tensor, length: Tensor | float) -> Tensor:
    """The change δ of a value v at a given length: c (v + δ) - v, where ‖c (v + δ)‖ = length.

    Args:
        value_D: v, D.
        delta_D: δ, D.
        length: norm that the changed value is to have.

    Returns:
        D, in float64.
    """
    value_D, moved_D = value_D.double(), value_D.double() + delta_D.double()
    as_long_D: Tensor = moved_D * (length / moved_D.norm())
    return as_long_D - value_D


def optimise(
    model: "LoadedModel",
    rewrites: Sequence[Rewrite],
    stream: Stream,
    layer: int,
    scale_N: Tensor,
    hparams: ValueHparams,
    at_value: bool = False,
) -> Values:
    """Minimise ROME's objective over the vector δ, independently for each request.

    mean over contexts of -1/A Σ_t log p(target_t) + kl_weight · KL(p_δ ‖ p_0) of the essence + decay · ‖δ‖ / scale²

    with Adam from δ = 0, projecting to ‖δ‖ ≤ clamp · scale after each step; A is the number of target tokens. A request
    stops when its loss is below `v_loss_stop`, when its target has been the most probable one for `v_probable_stop` loss
    evaluations, or at its `v_steps`-th loss evaluation, after which no update follows (as in ROME's public code). Requests
    share forward passes but are optimised independently.

    Args:
        model: frozen and not changed.
        rewrites: N requests.
        stream: all their rows, request by request, at the input of `layer`.
        layer: the first block to run; δ is added to the residual stream before it.
        scale_N: norm of the vector that δ is added to, at the plain prompt.
        hparams: optimisation hyper-parameters.
        at_value: add δ to the output of this block's value matrix instead.

    Raises:
        UserError: if a loss is NaN; the message names the record.
    """
    device, n = stream.residual_BTD.device, len(rewrites)
    work = working_dtype(stream.residual_BTD)
    scale_N = scale_N.to(work)
    delta_ND = torch.zeros(n, stream.residual_BTD.shape[-1], dtype=work, device=device)
    adam = RowAdam(delta_ND, hparams.v_lr)
    batch = _Batch(model, rewrites, Suffix(model, stream, layer, at_value))
    made = Values(delta_ND, [math.nan] * n, [math.nan] * n, [0] * n)
    active, probable_N = list(range(n)), [0] * n
    enough = hparams.v_probable_stop or math.inf
    for step in range(hparams.v_steps):
        index_A = torch.tensor(active, device=device)
        delta_AD = delta_ND[index_A].requires_grad_()
        nll_A, kl_A, is_probable_A = batch.objective(delta_AD)
        decay_A = hparams.v_weight_decay * delta_AD.norm(dim=-1) / scale_N[index_A] ** 2
        loss_A = nll_A + hparams.kl_weight * kl_A + decay_A
        found = zip(active, loss_A.tolist(), nll_A.tolist(), is_probable_A.tolist(), strict=True)
        for request, loss, nll, is_probable in found:
            if math.isnan(loss):
                raise UserError(
                    f"record {rewrites[request].record_id}: the loss of its value is not a number at step {step}",
                    fix="choose a smaller `v_lr`",
                )
            made.loss_N[request], made.nll_N[request], made.steps_N[request] = loss, nll, step
            probable_N[request] += is_probable
        going = [
            place
            for place, request in enumerate(active)
            if made.loss_N[request] >= hparams.v_loss_stop and probable_N[request] < enough
        ]
        if not going or step == hparams.v_steps - 1:
            break
        (gradient_AD,) = torch.autograd.grad(loss_A.sum(), delta_AD)
        if len(going) < len(active):
            batch.keep(going)
            gradient_AD = gradient_AD[going]
            active = [active[place] for place in going]
            index_A = torch.tensor(active, device=device)
        is_active_N = torch.zeros(n, dtype=torch.bool, device=device).index_fill_(0, index_A, True)
        adam.step(torch.zeros_like(delta_ND).index_copy_(0, index_A, gradient_AD), is_active_N)
        _clamp(delta_ND, hparams.v_clamp * scale_N)
    return made


class _Batch:
    """The requests still being optimised, and the positions where their losses are computed."""

    def __init__(self, model: "LoadedModel", rewrites: Sequence[Rewrite], suffix: Suffix) -> None:
        self._model, self._rewrites, self._suffix = model, list(rewrites), suffix
        self._before_AV: Tensor | None = None
        self._find_places()

    def objective(self, delta_AD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Negative log-likelihood of the target and KL(p_δ ‖ p_0) of the essence per request, differentiable.

        The third return value is whether every target token is the most probable one in every context. The first call must
        use δ = 0, because it sets p_0.
        """
        hidden_BSD = self._suffix.run(delta_AD[self._owner_B])
        hidden_PD = hidden_BSD[self._places_P2[:, 0], self._places_P2[:, 1]]
        logits_PV = self._model.logits(self._model.final_norm(hidden_PD)).to(delta_AD.dtype)
        labels = len(self._labels_L)
        logits_LV, after_AV = logits_PV[:labels], logits_PV[labels:].log_softmax(-1)
        nll_L = logits_LV.logsumexp(-1) - logits_LV.gather(1, self._labels_L[:, None])[:, 0]
        if self._before_AV is None:
            self._before_AV = after_AV.detach()
        kl_A = (after_AV.exp() * (after_AV - self._before_AV)).sum(-1)
        is_missed_AL = (self._share_AL > 0) & (logits_LV.argmax(-1) != self._labels_L)
        return self._share_AL.to(nll_L.dtype) @ nll_L, kl_A, ~is_missed_AL.any(-1)

    def keep(self, requests: Sequence[int]) -> None:
        """Keep only these requests."""
        starts = [0]
        for rewrite in self._rewrites:
            starts.append(starts[-1] + len(rewrite.rows))
        rows = [row for request in requests for row in range(starts[request], starts[request + 1])]
        index_A = torch.tensor(requests, device=self._model.device)
        self._suffix.keep(torch.tensor(rows, device=self._model.device))
        self._rewrites = [self._rewrites[request] for request in requests]
        if self._before_AV is not None:
            self._before_AV = self._before_AV[index_A]
        self._find_places()

    def _find_places(self) -> None:
        """Collect the (row, column from the pivot) of every label's prediction, then of every essence prompt.

        Positions before the pivot, which only occur for targets tokenised alone, are omitted, because δ has no effect there.
        """
        owners: list[int] = []
        places: list[tuple[int, int]] = []
        labels: list[int] = []
        shares: list[tuple[int, float]] = []
        essences: list[tuple[int, int]] = []
        for request, rewrite in enumerate(self._rewrites):
            for row in rewrite.contexts:
                first = len(row.ids) - len(row.labels) - row.pivot
                kept = [(first + at, label) for at, label in enumerate(row.labels) if first + at >= 0]
                places += [(len(owners), column) for column, _ in kept]
                labels += [label for _, label in kept]
                shares += [(request, 1 / (len(row.labels) * len(rewrite.contexts)))] * len(kept)
                owners.append(request)
            essences.append((len(owners), 0))
            owners.append(request)
        device = self._model.device
        self._owner_B = torch.tensor(owners, device=device)
        self._places_P2 = torch.tensor(places + essences, device=device)
        self._labels_L = torch.tensor(labels, device=device)
        share_AL = torch.zeros(len(self._rewrites), len(labels), dtype=torch.float64)
        for column, (request, share) in enumerate(shares):
            share_AL[request, column] = share
        self._share_AL = share_AL.to(device)


def _clamp(rows_ND: Tensor, limit_N: Tensor) -> None:
    """Rescale rows whose norm exceeds their limit."""
    norm_N = rows_ND.norm(dim=-1)
    rows_ND.mul_(torch.where(norm_N > limit_N, limit_N / norm_N, 1.0)[:, None])
