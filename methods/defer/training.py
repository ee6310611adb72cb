"""How DEFER learns: one request after the other, since all of them share the gate and the value's weights."""

import copy

import torch

from harness.models.loaded import LoadedModel
from harness.models.routed import last_of
from harness.tokens import Query
from methods.common.paused import Paused
from methods.defer.gate import Gate
from methods.defer.hparams import DeferHparams


def learn(model: LoadedModel, query: Query, gate: Gate, hparams: DeferHparams) -> float | None:
    """Train gate and value on one request; what they read does not depend on them, so only the blocks above run again.

    Returns:
        The loss before the last step; None if it was no number at some step: the gate is then as it was before.
    """
    paused = Paused(model, [query], hparams.layer)
    read_BT = paused.prompt_BT if hparams.query == "prompt_last" else paused.mask_BT
    query_1K = paused.inputs_BTK[:, int(last_of(read_BT))]
    before = copy.deepcopy(gate.state_dict())
    adam = torch.optim.Adam(gate.parameters(), lr=hparams.lr, fused=True)
    losses = []
    for _ in range(hparams.steps):
        adam.zero_grad(set_to_none=True)
        loss = paused.losses(gate.mixed(query_1K, paused.outputs_BTD)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        losses.append(loss.detach())
    adam.zero_grad(set_to_none=True)
    is_sound = torch.stack(losses).isfinite().all() & torch.stack([p.isfinite().all() for p in gate.parameters()]).all()
    if not is_sound:
        gate.load_state_dict(before)
        return None
    return float(losses[-1])
