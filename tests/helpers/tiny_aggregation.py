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


def slow_gradients(model, modules, ids, places, labels):
    """Input and output gradient of each matrix at the target tokens of one edit, by autograd through the whole model."""
    seen = {}

    def watch(name):
        def hook(module, arguments, output):
            output = output.detach().requires_grad_() if not output.requires_grad else output
            output.retain_grad()
            seen[name] = (arguments[0], output)
            return output

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in modules.items()]
    log_probs = model.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    (-sum(log_probs[at, label] for at, label in zip(places, labels, strict=True)) / len(labels)).backward()
    for handle in handles:
        handle.remove()
    return {name: (k[0, list(places)].detach(), v.grad[0, list(places)]) for name, (k, v) in seen.items()}


def slow_pairs(model, modules, edits):
    """Keys and gradients of each matrix at all target tokens of a batch; `edits` are (ids, places, labels)."""
    found = [slow_gradients(model, modules, *edit) for edit in edits]
    return {name: [torch.cat(part) for part in zip(*(each[name] for each in found), strict=True)] for name in modules}


def primal_shift(keys_NK, wanted_ND, weight):
    """(KᵀK + λI)⁻¹ Kᵀ D."""
    system_KK = keys_NK.T @ keys_NK + weight * torch.eye(keys_NK.shape[1], dtype=keys_NK.dtype)
    return torch.linalg.solve(system_KK, keys_NK.T @ wanted_ND)
