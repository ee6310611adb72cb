"""WISE's side memories: activation scores and routing (WISE §2.3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from harness.models.linear import bias_of, weight_of
from harness.models.routed import matrix
from methods.wise.hparams import WiseHparams

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class SideMemory:
    """One side memory.

    Attributes:
        change_DK: W' - W, at least fp32.
        threshold: the smallest mean activation among its edits at the end of their training.
    """

    change_DK: Tensor
    threshold: float


def activation_of(model: "LoadedModel", layer: int) -> Activation:
    """The non-linearity of a layer's feed-forward module, whose name depends on the architecture."""
    mlp = model.module(model.layout.mlp, layer)
    names = ("act_fn", "act", "activation_fn")
    return cast(nn.Module, getattr(mlp, next(name for name in names if hasattr(mlp, name))))


def lost_bias(model: "LoadedModel", hparams: WiseHparams) -> Tensor:
    """The bias that side memories omit, D: EasyEdit drops the matrix's bias (WISE.py:411, 546), which GPT-J has; else zeros."""
    linear = matrix(model, hparams.layer)
    bias, weight_DK = bias_of(linear), weight_of(linear)
    if hparams.implementation == "corrected" or bias is None:
        return weight_DK.new_zeros(len(weight_DK), device=model.device)
    return bias.detach().to(model.device)


def memory_of(model: "LoadedModel", sides: Sequence[SideMemory], edits: int, hparams: WiseHparams) -> "SideMemories":
    """Build the routing memory after `edits` edits from the side memories returned by `merging.assembled`."""
    activation, lost_D = activation_of(model, hparams.layer), lost_bias(model, hparams)
    if hparams.implementation == "corrected":
        return SideMemories(activation, sides, hparams.act_ratio, lost_D)
    if edits % hparams.save_freq == 0:
        weight_DK = model.value_matrix(hparams.layer)[1].to(model.device)
        sides = [*sides, SideMemory(torch.zeros_like(weight_DK, dtype=sides[0].change_DK.dtype), torch.inf)]
    return FaithfulMemories(activation, sides, hparams.act_ratio, lost_D)


def scores(activation: Activation, outputs_BTD: Tensor, added_BTD: Tensor, read_BT: Tensor) -> Tensor:
    """Mean `activity` over the tokens that are read.

    Returns:
        One score per row, B.
    """
    return activity(activation, outputs_BTD, added_BTD, read_BT).sum(-1) / read_BT.sum(-1)


def activity(activation: Activation, outputs_BTD: Tensor, added_BTD: Tensor, read_BT: Tensor) -> Tensor:
    """‖φ(W x) - φ(W' x)‖₂ of each token.

    Follows WISE's public code, which the published margins were tuned for; eq. 5 of the paper has no φ.

    Args:
        activation: φ.
        outputs_BTD: W x, plus the bias if the matrix has one.
        added_BTD: (W' - W) x.
        read_BT: True for the tokens that count, at least one per row.

    Returns:
        B × T, zero for tokens that do not count.
    """
    outputs_BTD = outputs_BTD.to(added_BTD.dtype)
    change_BTD = activation(outputs_BTD) - activation(outputs_BTD + added_BTD)
    size_BT: Tensor = torch.linalg.vector_norm(change_BTD, dim=-1).where(read_BT, 0.0)
    return size_BT


class SideMemories:
    """All side memories of a model. A `harness.models.routed.Memory`.

    A route is the index of the memory that answers each row; -1 for the model's own matrix.

    Args:
        activation: φ.
        sides: the memories.
        act_ratio: fraction of its threshold that a memory's activation must exceed; among those that do, the most active
            memory answers.
        lost_D: the bias that the memories omit.
    """

    def __init__(
        self, activation: Activation, sides: Sequence[SideMemory], act_ratio: float, lost_D: Tensor | None = None
    ) -> None:
        self._activation, self._sides, self._act_ratio, self._lost_D = activation, tuple(sides), act_ratio, lost_D

    def route(self, inputs_BTK: Tensor, outputs_BTD: Tensor, read_BT: Tensor) -> Tensor:
        """The most active memory above its threshold for each row, B integers."""
        best_B = torch.full((len(read_BT),), -torch.inf, device=read_BT.device)
        route_B = torch.full((len(read_BT),), -1, device=read_BT.device)
        for number, side in enumerate(self._sides):
            scores_B = self._scores(inputs_BTK, outputs_BTD, read_BT, side)
            wins_B = (scores_B > self._act_ratio * side.threshold) & (scores_B > best_B)
            best_B, route_B = torch.where(wins_B, scores_B, best_B), torch.where(wins_B, number, route_B)
        return route_B

    def answer(self, inputs_BTK: Tensor, outputs_BTD: Tensor, read_BT: Tensor, route: Tensor) -> Tensor:
        """W' x in rows routed to a memory, W x in the others."""
        answer_BTD = outputs_BTD.clone()
        for number, side in enumerate(self._sides):
            (rows_N,) = (route == number).nonzero(as_tuple=True)
            if len(rows_N):
                added_NTD = self._added(inputs_BTK[rows_N], side)
                answer_BTD[rows_N] = (outputs_BTD[rows_N] + added_NTD).to(outputs_BTD.dtype)
        return answer_BTD

    def scope(self, route: Tensor) -> Tensor:
        """1 where a memory answers, 0 where the model does."""
        return (route >= 0).float()

    def _scores(self, inputs_BTK: Tensor, outputs_BTD: Tensor, read_BT: Tensor, side: SideMemory) -> Tensor:
        return scores(self._activation, outputs_BTD, self._added(inputs_BTK, side), read_BT)

    def _added(self, inputs_BTK: Tensor, side: SideMemory) -> Tensor:
        added_BTD = inputs_BTK.to(side.change_DK.dtype) @ side.change_DK.mT
        return added_BTD if self._lost_D is None else added_BTD - self._lost_D


LONG = 100
"""Text length in tokens above which EasyEdit scores the maximum activation instead of the mean (WISE.py:37)."""


class FaithfulMemories(SideMemories):
    """Side memories with EasyEdit's routing (WISE.py:532-551); the last one is the memory that the next edit would train.

    The others must be more active than the last one even if its own activation is below its threshold.
    """

    def route(self, inputs_BTK: Tensor, outputs_BTD: Tensor, read_BT: Tensor) -> Tensor:
        """Route as described above; otherwise as `SideMemories.route`."""
        *others, current = self._sides
        best_B = self._scores(inputs_BTK, outputs_BTD, read_BT, current)
        is_reached_B = best_B >= self._act_ratio * current.threshold
        route_B = torch.where(is_reached_B, len(others), -1)
        for number, side in enumerate(others):
            scores_B = self._scores(inputs_BTK, outputs_BTD, read_BT, side)
            wins_B = (scores_B > best_B) & (scores_B > self._act_ratio * side.threshold)
            best_B, route_B = torch.where(wins_B, scores_B, best_B), torch.where(wins_B, number, route_B)
        return route_B

    def _scores(self, inputs_BTK: Tensor, outputs_BTD: Tensor, read_BT: Tensor, side: SideMemory) -> Tensor:
        size_BT = activity(self._activation, outputs_BTD, self._added(inputs_BTK, side), read_BT)
        tokens_B = read_BT.sum(-1)
        return torch.where(tokens_B > LONG, size_BT.amax(-1), size_BT.sum(-1) / tokens_B)
