"""Values that a model normalises before adding them to the residual stream (Gemma 2 and 3, OLMo 2).

An RMSNorm maps a value v to g ⊙ v / √(mean v² + ε): whatever v is, the result lies on an ellipsoid. A change of the
residual stream can therefore not be added to v as it is, and most changes can only be reached approximately.
"""

from typing import cast

import torch
from torch import Tensor, nn

STEPS = 100
"""Bisections of a multiplier; the interval is then as short as float64 allows."""


def value_for(norm: nn.Module, values_ND: Tensor, wanted_ND: Tensor) -> Tensor:
    """The values whose normalised form is nearest to the desired one, each as long as the value that it replaces.

    Minimises ‖g ⊙ u - w‖ over u with the length that the norm gives to v. By Lagrange, u = g ⊙ w / (g² + μ), where μ is the
    only number above -min g² for which u has this length (the trust-region problem; Moré and Sorensen 1983). If w can be
    reached, μ is 0 and the result is exact.

    Args:
        norm: the RMSNorm, with any gain.
        values_ND: values v before the norm, N × D.
        wanted_ND: desired output of the norm, w.

    Returns:
        N × D, in float64.
    """
    epsilon, gain_D = _epsilon(norm), _gain(norm).to(values_ND.device)
    values_ND, wanted_ND = values_ND.double(), wanted_ND.double()
    mean_N1 = values_ND.square().mean(-1, keepdim=True)
    length_N1 = (values_ND.shape[-1] * mean_N1 / (mean_N1 + epsilon)).sqrt()
    pulled_ND, square_D = gain_D * wanted_ND, gain_D.square()
    low_N1 = torch.full_like(length_N1, -float(square_D[square_D > 0].min()))
    high_N1 = pulled_ND.norm(dim=-1, keepdim=True) / length_N1  # here u is at most as long as it should be
    for _ in range(STEPS):
        middle_N1 = (low_N1 + high_N1) / 2
        is_long_N1 = _divided(pulled_ND, square_D + middle_N1).norm(dim=-1, keepdim=True) > length_N1
        low_N1, high_N1 = torch.where(is_long_N1, middle_N1, low_N1), torch.where(is_long_N1, high_N1, middle_N1)
    unit_ND = torch.nn.functional.normalize(_divided(pulled_ND, square_D + high_N1), dim=-1)
    return unit_ND * length_N1 * (mean_N1 + epsilon).sqrt()


def _divided(pulled_ND: Tensor, by_ND: Tensor) -> Tensor:
    """The quotient, and 0 for components that the norm does not let through."""
    return torch.where(pulled_ND == 0, 0.0, pulled_ND / by_ND)


def _epsilon(norm: nn.Module) -> float:
    """ε, which transformers' norms call `eps` or `variance_epsilon`."""
    return cast(float, getattr(norm, "eps", None) or norm.variance_epsilon)


def _gain(norm: nn.Module) -> Tensor:
    """g, D in float64: the weight of the norm, or one more than it (Gemma)."""
    weight_D = cast(nn.Parameter, norm.weight)
    with torch.no_grad():
        of_ones_D: Tensor = norm(torch.ones_like(weight_D, dtype=torch.float32))
    gain_D: Tensor = of_ones_D.double() * (1 + _epsilon(norm)) ** 0.5
    return gain_D
