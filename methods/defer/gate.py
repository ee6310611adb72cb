"""DEFER's memory: a linear gate and a linear value layer on the matrix's input, and their training on an edit."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.api import State
from harness.models.linear import weight_of
from harness.models.loaded import LoadedModel
from harness.models.placement import home_of
from harness.models.precision import working_dtype
from harness.models.routed import last_of
from harness.tokens import Query
from methods.common.paused import Paused
from methods.defer.editor import DeferHparams


@dataclass(frozen=True, slots=True)
class GateDecision:
    """Gate activation and value computed from one token per row.

    Attributes:
        gates_B: gate activation, in (0, 1).
        values_BD: output that replaces the matrix's at every token of the row.
    """

    gates_B: Tensor
    values_BD: Tensor


class Gate(nn.Module):
    """Gate and value layer, in at least fp32 regardless of the model's precision. A `harness.models.routed.Memory`.

    Args:
        gate: K to 1.
        value: K to D.
        threshold: gate activation at and above which the value replaces the output.
    """

    def __init__(self, gate: nn.Linear, value: nn.Linear, threshold: float) -> None:
        super().__init__()
        self.gate, self.value, self._threshold = gate, value, threshold

    @classmethod
    def drawn(cls, matrix: nn.Module, threshold: float, seed: int) -> "Gate":
        """Create a gate with the default initialisation of `nn.Linear`.

        Args:
            matrix: the matrix whose output it replaces, K to D.
            threshold: gate activation at and above which the value replaces the output.
            seed: seed of the initial weights.
        """
        weight_DK = weight_of(matrix)
        width, inputs = weight_DK.shape
        dtype = working_dtype(weight_DK)
        with torch.random.fork_rng(devices=[]):  # drawn on the CPU: the same on every device
            torch.manual_seed(seed)
            gate = nn.Linear(inputs, 1)
            value = nn.Linear(inputs, width)
        return cls(gate, value, threshold).to(home_of(matrix), dtype)

    @classmethod
    def kept(cls, state: State, threshold: float) -> "Gate":
        """Rebuild a gate from a copy of the weights returned by `state()`."""
        value_DK = state["value.weight"]
        gate, value = (nn.Linear(value_DK.shape[1], width, device="meta") for width in (1, len(value_DK)))
        made = cls(gate, value, threshold)
        made.load_state_dict({name: state[name].clone() for name in made.state_dict()}, assign=True)
        return made

    def state(self) -> dict[str, Tensor]:
        """The weights, not copied."""
        return dict(self.state_dict())

    def decide(self, queries_BK: Tensor) -> GateDecision:
        """Compute gate activation and value from one token per row."""
        queries_BK = queries_BK.to(self.gate.weight.dtype)
        return GateDecision(self.gate(queries_BK).sigmoid()[:, 0], self.value(queries_BK))

    def mixed(self, queries_BK: Tensor, outputs_BTD: Tensor) -> Tensor:
        """Interpolate between output and value by the gate activation; used in training, since a threshold has no gradient."""
        decision = self.decide(queries_BK)
        outputs_BTD = outputs_BTD.to(decision.values_BD.dtype)
        return torch.lerp(outputs_BTD, decision.values_BD[:, None], decision.gates_B[:, None, None])

    def route(self, inputs_BTK: Tensor, outputs_BTD: Tensor, read_BT: Tensor) -> GateDecision:
        """Decide by the last readable token of each row."""
        return self.decide(inputs_BTK[torch.arange(len(read_BT), device=read_BT.device), last_of(read_BT)])

    def answer(self, inputs_BTK: Tensor, outputs_BTD: Tensor, read_BT: Tensor, route: GateDecision) -> Tensor:
        """Use the value at every token of the deferred rows, including tokens still to be generated."""
        is_deferred_B11 = (route.gates_B >= self._threshold)[:, None, None]
        return torch.where(is_deferred_B11, route.values_BD[:, None].to(outputs_BTD.dtype), outputs_BTD)

    def scope(self, route: GateDecision) -> Tensor:
        """The gate activation."""
        return route.gates_B


def learn(model: LoadedModel, query: Query, gate: Gate, hparams: DeferHparams) -> float | None:
    """Train gate and value layer on one request. Their input does not depend on them, so only the blocks above re-run.

    Returns:
        The loss before the last step; None if it was not finite at some step, in which case the gate is restored.
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
