"""Find decisions of a decoding step that rounding could change.

A forward pass over several ids rounds differently from one over a single id, and so does a pass over another batch. If each
logit changes by at most ε, each log-probability changes by at most 2ε; P is a sum of non-negative terms, so each of its
values changes by a factor within e^±2ε, and a relative lead above 4ε cannot be overturned.
"""

import torch
from torch import Tensor

from methods.onceedit.choose import Choice, Chooser

ULPS = 128
"""Assumed error of a logit in units of rounding of the largest one. Measured on SmolLM2-135M in fp32: at most 20."""

_SEARCH_ULPS = 256
"""The same for the final logits of a search in fp64 that starts from zero: they are at most 1, and so are their derivatives."""


def logit_error(logits_BV: Tensor, dtype: torch.dtype) -> Tensor:
    """Bound ε on the error of each row's logits, B.

    Args:
        logits_BV: the logits; -inf is ignored.
        dtype: precision in which the model ran.
    """
    reach_B = logits_BV.masked_fill(logits_BV.isinf(), 0.0).abs().amax(dim=-1)
    return reach_B * (ULPS * torch.finfo(dtype).eps)


def is_doubtful(
    chooser: Chooser, choice: Choice, logits_l_BV: Tensor, error_l_B: Tensor, error_s_B: Tensor | None = None
) -> Tensor:
    """Whether rounding could have changed each row's token.

    Args:
        chooser: what made the choice.
        choice: the choice.
        logits_l_BV: the target model's logits.
        error_l_B: bound on their error.
        error_s_B: bound on the error of the plug-in's logits; None if all rows are gated.
    """
    top_B2 = logits_l_BV.topk(2, dim=-1).values
    is_own_doubtful_B = top_B2[:, 0] - top_B2[:, 1] <= 2 * error_l_B
    if choice.decoded is None or error_s_B is None:
        return is_own_doubtful_B
    certificate, lead_B = choice.decoded.certificate, choice.decoded.lead_B
    if certificate is None:
        raise ValueError("the soft search has no certificate, so no bound on what rounding may change")
    least_lead_B = 4 * torch.maximum(error_l_B, error_s_B.to(error_l_B.device))
    is_doubtful_B = certificate.margin_B <= least_lead_B
    if lead_B is not None:
        is_doubtful_B |= lead_B <= _SEARCH_ULPS * torch.finfo(torch.float64).eps
    if choice.decoded.certificate_of_llm is not None:
        is_doubtful_B |= choice.decoded.certificate_of_llm.margin_B <= least_lead_B
        is_doubtful_B |= is_own_doubtful_B & (choice.anchors_B < 0)
    if chooser.eos_id is not None:
        could_end_B = logits_l_BV[:, chooser.eos_id] >= top_B2[:, 0] - 2 * error_l_B
        is_doubtful_B |= is_own_doubtful_B & could_end_B
    return torch.where(choice.is_gated_B | choice.is_ended_B, is_own_doubtful_B, is_doubtful_B)
