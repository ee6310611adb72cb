"""WISE's side memories: how active each is for a prompt, and which of them answers, if any (WISE §2.3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

Activation = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Side:
    """One side memory.

    Attributes:
        change_DK: W' - W, at least fp32.
        threshold: the smallest mean activation that one of its edits had at the end of its training.
    """

    change_DK: Tensor
    threshold: float


def activation_of(model: "LoadedModel", layer: int) -> Activation:
    """The non-linearity of a layer's feed-forward module, under either name that the architectures have for it."""
    mlp = model.module(model.layout.mlp, layer)
    return cast(nn.Module, mlp.act_fn if hasattr(mlp, "act_fn") else mlp.act)


def scores(activation: Activation, outputs_BTD: Tensor, added_BTD: Tensor, read_BT: Tensor) -> Tensor:
    """‖φ(W x) - φ(W' x)‖₂, mean over the tokens that are read.

    As in WISE's public code, whose margins belong to it; eq. 5 of the paper has no φ.

    Args:
        activation: φ.
        outputs_BTD: W x, with the bias of a matrix that has one.
        added_BTD: (W' - W) x.
        read_BT: True for the tokens that count, at least one per row.

    Returns:
        B.
    """
    outputs_BTD = outputs_BTD.to(added_BTD.dtype)
    change_BTD = activation(outputs_BTD) - activation(outputs_BTD + added_BTD)
    size_BT: Tensor = torch.linalg.vector_norm(change_BTD, dim=-1).where(read_BT, 0.0)
    return size_BT.sum(-1) / read_BT.sum(-1)


class SideMemories:
    """All side memories of a model, beside its main one. A `methods.common.routed.Memory`.

    A route is the number of the memory that answers, per row; -1 for the model's own matrix.

    Args:
        activation: φ.
        sides: the memories.
        act_ratio: share of its threshold that a memory's activation must exceed. Of those that do the most active answers.
    """

    def __init__(self, activation: Activation, sides: Sequence[Side], act_ratio: float) -> None:
        self._activation, self._sides, self._act_ratio = activation, tuple(sides), act_ratio

    def route(self, inputs_BTK: Tensor, outputs_BTD: Tensor, read_BT: Tensor) -> Tensor:
        """The most active memory of each row, B integers."""
        best_B = torch.full((len(read_BT),), -torch.inf, device=read_BT.device)
        route_B = torch.full((len(read_BT),), -1, device=read_BT.device)
        for number, side in enumerate(self._sides):
            added_BTD = _added(inputs_BTK, side)
            scores_B = scores(self._activation, outputs_BTD, added_BTD, read_BT)
            wins_B = (scores_B > self._act_ratio * side.threshold) & (scores_B > best_B)
            best_B, route_B = torch.where(wins_B, scores_B, best_B), torch.where(wins_B, number, route_B)
        return route_B

    def answer(self, inputs_BTK: Tensor, outputs_BTD: Tensor, read_BT: Tensor, route: Tensor) -> Tensor:
        """W' x in the rows of a memory, W x in the others."""
        answer_BTD = outputs_BTD.clone()
        for number, side in enumerate(self._sides):
            (rows_N,) = (route == number).nonzero(as_tuple=True)
            if len(rows_N):
                added_NTD = _added(inputs_BTK[rows_N], side)
                answer_BTD[rows_N] = (outputs_BTD[rows_N] + added_NTD).to(outputs_BTD.dtype)
        return answer_BTD

    def scope(self, route: Tensor) -> Tensor:
        """One where a memory answers, zero where the model does."""
        return (route >= 0).float()


def _added(inputs_BTK: Tensor, side: Side) -> Tensor:
    return inputs_BTK.to(side.change_DK.dtype) @ side.change_DK.mT
