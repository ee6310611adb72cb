"""Convert our MEND hypernetwork to the state dict of EasyEdit's MEND and back: the same numbers under different names.

Both forms hold the same information; EasyEdit additionally stores the standard deviations, which follow from the rest.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from methods.common.transforms import EditedMatrix, GradientTransform
from methods.mend.network import Hypernetwork

RESIDUAL = {
    "u": "u_SR",
    "v": "v_RS",
    "bias": "bias_S",
    "mode_scale.weight": "scale_MS",
    "mode_shift.weight": "shift_MS",
}
"""EasyEdit's names of a residual layer's parameters (local_nn.py:44), and ours."""


def state_of(hypernetwork: Hypernetwork, config: object) -> dict[str, Any]:
    """Build the state that `MEND.load_state_dict` reads (MEND.py:355).

    Args:
        hypernetwork: our hypernetwork.
        config: configuration of the edited model; EasyEdit logs a warning if it differs.
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
    """Build our hypernetwork from the state that `MEND.state_dict` returns (MEND.py:343).

    Args:
        state: state trained for the matrices, in their order.
        matrices: the edited matrices.
        rank: rank of the residual layers.
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
    """Yield each transform with EasyEdit's name for it, `mend.(inputs, outputs)`."""
    for transform in hypernetwork.transforms.values():
        assert isinstance(transform, GradientTransform)
        outputs = len(transform.mean_S) - transform.inputs
        yield f"mend.{(transform.inputs, outputs)}", transform


def _cut(transform: GradientTransform, values_S: Tensor) -> tuple[Tensor, Tensor]:
    return values_S[: transform.inputs].clone(), values_S[transform.inputs :].clone()
