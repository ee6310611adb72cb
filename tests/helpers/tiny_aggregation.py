"""Hyper-parameters of methods that aggregate changes on two-layer models, and the least squares that they solve, written out."""

import torch

from methods.common.aggregation.hparams import AggregationHparams

MATRICES = {"llama": ["up_proj", "down_proj"], "mistral": ["up_proj", "down_proj"], "gptj": ["fc_in", "fc_out"]}


def edit_options(architecture="llama", **changes):
    return {"layers": [0, 1], "matrices": MATRICES[architecture], "rounds": 2, "micro_batch": 3, "batch": 4} | changes


def learned(architecture="llama", **changes):
    values = {
        "rank": 4,
        "blocks_of_network": 2,
        "edit_lr": 0.02,
        "lr": 1e-3,
        "clip": 1.0,
        "norm_weight": 0.5,
        "loc_weight": 0.7,
        "train_batch": 3,
        "train_batches": 1,
        "steps": 2,
        "mode": "batch",
    }
    return AggregationHparams(**edit_options(architecture) | values | changes)


def primal_shift(keys_NK, wanted_ND, weight):
    """(KᵀK + λI)⁻¹ Kᵀ D."""
    system_KK = keys_NK.T @ keys_NK + weight * torch.eye(keys_NK.shape[1], dtype=keys_NK.dtype)
    return torch.linalg.solve(system_KK, keys_NK.T @ wanted_ND)
