"""The vocabulary entry `[WEIGHT]`: a linear read-out of hidden states, trained separately and then appended to the model.

Only its row of the output head is learned. Its input embedding is never used, because `[WEIGHT]` never occurs in a text.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor, nn

from methods.onceedit.packing import packed_hidden_at
from methods.onceedit.plugin import add_weight_entry
from methods.onceedit.rows import TrainingRow, negatives_per_epoch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PENALTIES = tuple(10.0**-step for step in range(9))
"""Tried in this order; the last one is negligible in fp64."""

_STEPS = 200
"""Maximum L-BFGS iterations per penalty, each warm-started from the previous one; never reached in practice."""


@torch.no_grad()
def new_entry(model: "PreTrainedModel") -> nn.Linear:
    """Initial `[WEIGHT]`: the mean of all rows of the output head, D → 1, with a bias if the head has one."""
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    width = head.weight.shape[1]
    entry = nn.Linear(width, 1, bias=bias is not None, device=head.weight.device, dtype=head.weight.dtype)
    entry.weight.copy_(head.weight.mean(dim=0, keepdim=True))
    if bias is not None:
        entry.bias.copy_(bias.mean())
    return entry


@torch.no_grad()
def append_entry(model: "PreTrainedModel", entry: nn.Linear) -> int:
    """Append `entry` to the model's vocabulary in place and return its id."""
    weight_id = add_weight_entry(model)
    head = model.get_output_embeddings()
    head.weight[weight_id] = entry.weight[0]
    if getattr(head, "bias", None) is not None:
        head.bias[weight_id] = entry.bias[0]
    return weight_id


@torch.no_grad()
def take_entry(model: "PreTrainedModel", weight_id: int) -> nn.Linear:
    """The opposite of `append_entry`: remove the last entry from the model's vocabulary in place and return it."""
    head = model.get_output_embeddings()
    entry = new_entry(model)
    entry.weight.copy_(head.weight[weight_id:])
    if entry.bias is not None:
        entry.bias.copy_(head.bias[weight_id:])
    model.resize_token_embeddings(weight_id)
    return entry


@torch.no_grad()
def learn_entry(
    model: "PreTrainedModel",
    entry: nn.Linear,
    edits: Sequence[Sequence[TrainingRow]],
    negatives: Sequence[TrainingRow],
    hparams: Mapping[str, Any],
) -> None:
    """Minimise L_weight over `[WEIGHT]` alone, with the model fixed (see `fit_entry`).

    All negatives are used, each with its expected weight in an epoch of `fine_tune`.
    """
    rows = [row for item in (*edits, negatives) for row in item]
    read = [(row.ids, row.weight_at, float(row.is_edit)) for row in rows if row.weight_at is not None]
    parts = []
    for start in range(0, len(read), hparams["batch"]):
        chunk = read[start : start + hparams["batch"]]
        places = [(row, at) for row, (_, at, _) in enumerate(chunk)]
        parts.append(packed_hidden_at(model, [ids for ids, _, _ in chunk], places))
    is_edit_N = torch.tensor([label for _, _, label in read])
    drawn = negatives_per_epoch(len(edits), len(negatives), hparams) / max(len(negatives), 1)
    share_N = is_edit_N + hparams["negative_weight"] * drawn * (1 - is_edit_N)
    fit_entry(entry, torch.cat(parts), is_edit_N, share_N, hparams["stop_bce"])


@torch.no_grad()
def fit_entry(entry: nn.Linear, hidden_ND: Tensor, is_edit_N: Tensor, share_N: Tensor, stop_bce: float) -> float:
    """Fit `entry` on fixed hidden states by logistic regression: convex, in fp64, and bitwise reproducible.

    Hidden states have far more dimensions than there are prompts, so many entries separate edits from unrelated prompts.
    The one closest to the initial entry is wanted: the penalty on the squared distance (relative to the mean squared norm of
    the hidden states) is reduced by factors of ten until the loss is below `stop_bce`.

    Args:
        entry: the initial value, overwritten with the result.
        hidden_ND: last hidden state of each prompt.
        is_edit_N: 1 for an edit, 0 for an unrelated prompt: z of OnceEdit eq. 6.
        share_N: weight of each prompt in the loss.
        stop_bce: mean binary cross entropy to reach; may be missed even at the smallest penalty.

    Returns:
        The mean binary cross entropy reached.
    """
    features = hidden_ND.double().cpu().numpy()
    if entry.bias is not None:
        features = np.hstack([features, np.ones((len(features), 1))])
    is_edit, share = is_edit_N.double().cpu().numpy(), share_N.double().cpu().numpy()
    share = share / share.sum()
    start = torch.cat([parameter.detach().flatten() for parameter in entry.parameters()]).double().cpu().numpy()
    square = float(share @ (features**2).sum(axis=1))

    def entropy(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logit = features @ values
        loss = share @ (np.logaddexp(0.0, logit) - is_edit * logit)
        return float(loss), features.T @ (share * (expit(logit) - is_edit))

    def penalised(values: NDArray[np.float64], penalty: float) -> tuple[float, NDArray[np.float64]]:
        loss, slope = entropy(values)
        moved = values - start
        return loss + penalty / 2 * square * float(moved @ moved), slope + penalty * square * moved

    values = start
    for penalty in _PENALTIES:
        found = minimize(penalised, values, (penalty,), "L-BFGS-B", jac=True, options={"maxiter": _STEPS})
        values = found.x
        if entropy(values)[0] < stop_bce:
            break
    learned = torch.from_numpy(values).to(entry.weight)
    width = entry.weight.shape[1]
    entry.weight.copy_(learned[None, :width])
    if entry.bias is not None:
        entry.bias.copy_(learned[width:])
    return entropy(values)[0]
