"""Fusion of two next-token distributions in anchor space (OnceEdit eq. 8)."""

import torch
from torch import Tensor

from methods.onceedit.relative import RelativeState


def fuse(probs_l_BV: Tensor, probs_s_BU: Tensor, alpha_B: Tensor, llm: RelativeState, plugin: RelativeState) -> Tensor:
    """P = α · p_s R_s + (1 - α) · p_l R_l.

    Args:
        probs_l_BV: target model probabilities, batch × its vocabulary, rows sum to 1.
        probs_s_BU: plug-in probabilities, batch × its vocabulary; `[WEIGHT]` has none.
        alpha_B: weight of the plug-in, in [0, 1].
        llm, plugin: relative states over the same anchors.

    Returns:
        probs_BA over the A anchors, rows sum to 1.
    """
    return mix(llm.project(probs_l_BV), plugin.project(probs_s_BU), alpha_B)


def mix(probs_l_BA: Tensor, probs_s_BA: Tensor, alpha_B: Tensor) -> Tensor:
    """The mixture of eq. 8 once both distributions are in anchor space, B × A each."""
    return torch.lerp(probs_l_BA, probs_s_BA, alpha_B.to(probs_l_BA.dtype)[:, None])
