"""A hypernetwork of ours as a state of EasyEdit's MEND, and back: the same numbers under other names.

Neither form holds anything that the other lacks, except that EasyEdit keeps the standard deviations beside what they follow from.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from methods.mend.network import EditedMatrix, GradientTransform, Hypernetwork

RESIDUAL = {
    "u": "u_SR",
    "v": "v_RS",
    "bias": "bias_S",
    "mode_scale.weight": "scale_MS",
    "mode_shift.weight": "shift_MS",
}
"""Parameters of a residual layer, local_nn.py:44, by ours."""


def state_of(hypernetwork: Hypernetwork, config: object) -> dict[str, Any]:
    """What `MEND.load_state_dict` reads (MEND.py:355).

    Args:
        hypernetwork: of ours.
        config: the model's; another than that of the model which is edited leaves a line in the log.
    """
    state: dict[str, Any] = {"model_config": config, "edit_lrs": hypernetwork.edit_lr_M.detach().clone()}
    for at, transform in _transforms(hypernetwork):
        spread_S = (transform.squares_S / (transform.count - 1)).sqrt()
        for name, value_S in (("mean", transform.mean_S), ("s", transform.squares_S), ("std", spread_S)):
            state[f"{at}.u_{name}"], state[f"{at}.v_{name}"] = _cut(transform, value_S.float())
        state[f"{at}.k"] = transform.count.float().reshape(1)
        for number, layer in enumerate(transform.layers):
            for theirs, ours in RESIDUAL.items():
                state[f"{at}.mlp.layers.{number}.{theirs}"] = getattr(layer, ours).detach().clone()
    return state


def from_state(state: Mapping[str, Tensor], matrices: tuple[EditedMatrix, ...], rank: int) -> Hypernetwork:
    """Our hypernetwork from what `MEND.state_dict` gives (MEND.py:343).

    Args:
        state: trained for the matrices, in their order.
        matrices: the edited ones.
        rank: of the residual layers.
    """
    hypernetwork = Hypernetwork(matrices, rank, edit_lr=0.0, seed=0).requires_grad_(False)
    hypernetwork.edit_lr_M.copy_(state["edit_lrs"])
    for at, transform in _transforms(hypernetwork):
        transform.mean_S.copy_(torch.cat([state[f"{at}.u_mean"], state[f"{at}.v_mean"]]))
        transform.squares_S.copy_(torch.cat([state[f"{at}.u_s"], state[f"{at}.v_s"]]))
        transform.count.copy_(state[f"{at}.k"][0])
        for number, layer in enumerate(transform.layers):
            for theirs, ours in RESIDUAL.items():
                getattr(layer, ours).copy_(state[f"{at}.mlp.layers.{number}.{theirs}"])
    return hypernetwork


def _transforms(hypernetwork: Hypernetwork) -> Iterator[tuple[str, GradientTransform]]:
    """Each transform behind EasyEdit's name of it, `mend.(inputs, outputs)`."""
    for transform in hypernetwork.transforms.values():
        assert isinstance(transform, GradientTransform)
        outputs = len(transform.mean_S) - transform.inputs
        yield f"mend.{(transform.inputs, outputs)}", transform


def _cut(transform: GradientTransform, values_S: Tensor) -> tuple[Tensor, Tensor]:
    return values_S[: transform.inputs].clone(), values_S[transform.inputs :].clone()
