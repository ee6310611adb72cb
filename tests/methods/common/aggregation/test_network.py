"""The hypernetwork of MALMEN and EMSEdit, written out."""

import torch

from methods.common.aggregation.network import ShiftNetwork
from methods.common.factors import GradientFactors
from methods.common.transforms import EditedMatrix

K, D, N = 3, 2, 6


def test_it_scales_and_shifts_after_the_maximum_and_weighs_by_the_raw_key():
    """EMSEdit §2: h + scale ⊙ max(hAB + b, 0) + shift; MEND has scale and shift inside the maximum."""
    torch.manual_seed(0)
    matrices = (EditedMatrix("a", K, D), EditedMatrix("b", K, D))
    network = ShiftNetwork(matrices, rank=2, layers=2, edit_lr=0.1, seed=0).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    keys_NK, gradients_ND = torch.randn(N, K).double(), torch.randn(N, D).double()
    where_N = torch.arange(N)
    factors = GradientFactors(keys_NK, gradients_ND, 0 * where_N, where_N, (1, N))
    network.observe({"a": factors, "b": factors})
    rows_NS = torch.cat([keys_NK, gradients_ND], 1)
    both_NS = torch.cat([rows_NS, rows_NS])
    hidden_NS = (rows_NS - both_NS.mean(0)) / (both_NS.std(0) + 1e-7)
    for layer in network.transforms[f"{K}x{D}"].layers:
        mixed_NS = hidden_NS @ layer.v_RS.T @ layer.u_SR.T + layer.bias_S
        hidden_NS = hidden_NS + layer.scale_MS[1] * torch.relu(mixed_NS) + layer.shift_MS[1]
    agreement_N1 = (keys_NK * hidden_NS[:, :K]).sum(1, keepdim=True)
    expected_ND = -network.edit_lr_M[1] * agreement_N1 * hidden_NS[:, K:]
    torch.testing.assert_close(network.changes(1, keys_NK, gradients_ND), expected_ND, rtol=1e-10, atol=1e-12)
