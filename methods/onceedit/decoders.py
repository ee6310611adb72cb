"""Three decoders from a fused anchor distribution back to a token of the target model (OnceEdit eq. 9-11).

`search` is DeePEn's: a few AdamW steps on the KL divergence find logits whose projection matches the target. `column` is
the same search for a one-hot target, which needs only one column of R. `owner` skips the search: in exact arithmetic,
gradient descent from zero logits, at any rate and for any number of steps, has its arg-max at the token with the largest
value in the target's column (its owner). With AdamW the two usually agree at the learning rates in use, but not always, so
neither is used in place of the other.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from methods.onceedit.certify import Certificate
from methods.onceedit.fusion import Fused
from methods.onceedit.matrix import TransferMatrix
from methods.onceedit.relative import RelativeState

Init = Literal["zero", "llm"]
Target = Literal["onehot", "soft"]

_BETAS = (0.9, 0.999)
_EPS = 1e-8
_WEIGHT_DECAY = 0.01
_COSINE_STEPS = 10


@dataclass(frozen=True, eq=False)
class Decoded:
    """Decoded tokens of a batch.

    Attributes:
        tokens_B: ids of the target model.
        anchors_B: the most probable anchor of each row, i.e. the one-hot target.
        certificate: proof that it is the most probable; None if the full distribution was computed.
        logits: computes the final logits of a search, B × V, whose arg-max the tokens are; None if there was no search.
        lead_B: lead of the token's logit over all others; None if the tokens do not come from a search of a column.
        certificate_of_llm: the most probable anchor of the target model alone; None if it was not needed.
    """

    tokens_B: Tensor
    anchors_B: Tensor
    certificate: Certificate | None = None
    logits: Callable[[], Tensor] | None = None
    lead_B: Tensor | None = None
    certificate_of_llm: Certificate | None = None


class Decoder(Protocol):
    """Maps fused distributions to tokens of the target model."""

    def decode(self, fused: Fused, logits_l_BV: Tensor) -> Decoded:
        """Decode a batch.

        Args:
            fused: mixture over the anchors.
            logits_l_BV: the target model's own logits, a possible starting point of the search.
        """
        ...


@dataclass(frozen=True, eq=False)
class OwnerDecoder:
    """Look up the token with the largest value in the column of the most probable anchor."""

    def decode(self, fused: Fused, logits_l_BV: Tensor) -> Decoded:
        """See `Decoder`."""
        anchors_B = fused.certificate.anchors_B
        return Decoded(fused.llm.state.owners(anchors_B), anchors_B, fused.certificate)


@dataclass(frozen=True, eq=False)
class ColumnDecoder:
    """The search for a one-hot target in O(steps · V): only the target's column r of R matters.

    With p = softmax(z) and q = p · r, the loss is -log(q) / A (KL divergence, mean over A anchors) and
    ∂L/∂z_j = -p_j (r_j - q) / (q A) = (p_j - softmax(z + log r)_j) / A; the second form is safe when q underflows.
    """

    steps: int = 5
    lr: float = 0.15
    init: Init = "zero"

    def decode(self, fused: Fused, logits_l_BV: Tensor) -> Decoded:
        """See `Decoder`."""
        anchors_B = fused.certificate.anchors_B
        z_BV = self.search(fused.llm.state, anchors_B, logits_l_BV)
        tokens_B, lead_B = _best(z_BV)
        return Decoded(tokens_B, anchors_B, fused.certificate, lambda: z_BV, lead_B)

    def search(self, state: RelativeState, anchors_B: Tensor, logits_l_BV: Tensor) -> Tensor:
        """Final logits of the search, B × V, for one target anchor per row."""
        log_r_BV = state.log_columns(anchors_B)
        z_BV = _start(self.init, logits_l_BV, log_r_BV.dtype)
        optimiser = _AdamW(z_BV, self.lr)
        for _ in range(self.steps):
            pull_BV = z_BV.softmax(dim=-1) - (z_BV + log_r_BV).softmax(dim=-1)
            optimiser.step(pull_BV / state.n_anchors)
        return z_BV


class AnchorTokens:
    """The same search from zero logits, once per anchor: its result depends on nothing else.

    Args:
        column: the search.
        state: relative state of the target model.
    """

    def __init__(self, column: ColumnDecoder, state: RelativeState) -> None:
        if column.init != "zero":
            raise ValueError("a search that starts from the target model's logits depends on them")
        self._column = column
        self._token_A = torch.full_like(state.anchor_ids_A, -1)
        self._lead_A = torch.zeros_like(self._token_A, dtype=torch.float64)

    def decode(self, fused: Fused, logits_l_BV: Tensor) -> Decoded:
        """See `Decoder`."""
        state, anchors_B = fused.llm.state, fused.certificate.anchors_B

        def logits() -> Tensor:
            return self._column.search(state, anchors_B, logits_l_BV)

        unknown = (self._token_A[anchors_B] < 0).nonzero().squeeze(-1)
        if len(unknown):
            found_B = anchors_B[unknown]
            z_BV = self._column.search(state, found_B, logits_l_BV[unknown])
            self._token_A[found_B], self._lead_A[found_B] = _best(z_BV)
        return Decoded(self._token_A[anchors_B], anchors_B, fused.certificate, logits, self._lead_A[anchors_B])


@dataclass(frozen=True, eq=False)
class SearchDecoder:
    """DeePEn's search on the full target t: KL(t ‖ softmax(z) R), mean over A anchors.

    With p = softmax(z) and g_j = -Σ_a R_ja t_a / (pR)_a / A, ∂L/∂z_j = p_j (g_j - Σ_k p_k g_k).
    """

    steps: int = 5
    lr: float = 0.15
    init: Init = "zero"
    target: Target = "onehot"

    def decode(self, fused: Fused, logits_l_BV: Tensor) -> Decoded:
        """See `Decoder`."""
        z_BV = self.search(fused.llm.matrix, fused.probs_BA, logits_l_BV)
        return Decoded(z_BV.argmax(dim=-1), fused.probs_BA.argmax(dim=-1), None, lambda: z_BV)

    def search(self, matrix: TransferMatrix, fused_BA: Tensor, logits_l_BV: Tensor) -> Tensor:
        """Final logits of the search, B × V."""
        target_BA = fused_BA
        if self.target == "onehot":
            target_BA = torch.zeros_like(fused_BA).scatter_(1, fused_BA.argmax(dim=-1, keepdim=True), 1.0)
        z_BV = _start(self.init, logits_l_BV, fused_BA.dtype)
        optimiser = _AdamW(z_BV, self.lr)
        tiny = torch.finfo(fused_BA.dtype).tiny
        for _ in range(self.steps):
            p_BV = z_BV.softmax(dim=-1)
            ratio_BA = target_BA / matrix.project(p_BV).clamp_min(tiny)
            g_BV = matrix.back_project(ratio_BA) / -matrix.state.n_anchors
            optimiser.step(p_BV * (g_BV - (p_BV * g_BV).sum(dim=-1, keepdim=True)))
        return z_BV


def make_decoder(name: str, state: RelativeState, *, steps: int, lr: float, init: Init, target: Target) -> Decoder:
    """Create a decoder from anchor space by name; `OnceEditHparams` rejects invalid combinations beforehand."""
    if name == "search":
        return SearchDecoder(steps, lr, init, target)
    if name == "owner":
        return OwnerDecoder()
    column = ColumnDecoder(steps, lr, init)
    return AnchorTokens(column, state) if init == "zero" else column


def learning_rate(lr: float, step: int) -> float:
    """DeePEn's cosine schedule: from lr at step 0 towards lr / 4 at step 10."""
    return lr / 4 + (lr - lr / 4) * (1 + math.cos(math.pi * step / _COSINE_STEPS)) / 2


def _best(z_BV: Tensor) -> tuple[Tensor, Tensor]:
    """The arg-max of each row, and its lead over the second largest value in fp64."""
    largest_B2 = z_BV.topk(2, dim=-1).values.double()
    return z_BV.argmax(dim=-1), largest_B2[:, 0] - largest_B2[:, 1]


def _start(init: Init, logits_l_BV: Tensor, dtype: torch.dtype) -> Tensor:
    """Initial logits. Zero *logits* are the uniform distribution; for zero probabilities the divergence is undefined."""
    return torch.zeros_like(logits_l_BV, dtype=dtype) if init == "zero" else logits_l_BV.to(dtype, copy=True)


class _AdamW:
    """torch.optim.AdamW with the cosine schedule, applied to one tensor in place, without autograd."""

    def __init__(self, variable: Tensor, lr: float) -> None:
        self.variable, self.lr, self.taken = variable, lr, 0
        self.mean, self.square = torch.zeros_like(variable), torch.zeros_like(variable)

    def step(self, gradient: Tensor) -> None:
        lr = learning_rate(self.lr, self.taken)
        self.taken += 1
        self.variable.mul_(1 - lr * _WEIGHT_DECAY)
        self.mean.lerp_(gradient, 1 - _BETAS[0])
        self.square.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
        scale = (self.square / (1 - _BETAS[1] ** self.taken)).sqrt_().add_(_EPS)
        self.variable.addcdiv_(self.mean, scale, value=-lr / (1 - _BETAS[0] ** self.taken))
