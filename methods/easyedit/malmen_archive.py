"""Convert our MALMEN hypernetwork to the state dict of EasyEdit's MALMEN: the same numbers under different names."""

import torch
from torch import Tensor

from methods.common.aggregation.network import ShiftNetwork
from methods.common.transforms import GradientTransform, Residual


def state_of(network: ShiftNetwork) -> dict[str, Tensor]:
    """Build the state that `MALMEN.load_state_dict` reads (MALMEN.py:285); its networks are named `(inputs, outputs)`."""
    state: dict[str, Tensor] = {}
    for shape, transform in network.transforms.items():
        assert isinstance(transform, GradientTransform)
        alike = [index for index, matrix in enumerate(network.matrices) if matrix.shape == shape]
        at = str((transform.inputs, len(transform.mean_S) - transform.inputs))
        spread_S = (transform.squares_S / (transform.count - 1).clamp(min=1)).sqrt()
        state |= {
            f"{at}.normalizer.n": transform.count.float().reshape(1),
            f"{at}.normalizer.mean": transform.mean_S.float(),
            f"{at}.normalizer.var": transform.squares_S.float(),
            f"{at}.normalizer.std": spread_S.float(),
            f"{at}.lr.weight": network.edit_lr_M.detach()[alike][:, None],
            f"{at}.lamda.weight": network.log_ridge_M.detach()[alike][:, None],
        }
        for number, layer in enumerate(transform.layers):
            assert isinstance(layer, Residual)
            named = {
                "A": layer.v_RS.T,
                "B": layer.u_SR.T,
                "bias": layer.bias_S,
                "scale.weight": layer.scale_MS,
                "shift.weight": layer.shift_MS,
            }
            state |= {
                f"{at}.blocks.{number}.{name}": value.detach().contiguous().clone() for name, value in named.items()
            }
    return {name: value.to(torch.float32) for name, value in state.items()}
