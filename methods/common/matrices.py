"""The matrices that a closed-form edit changes, at least float32 whatever the model's precision, and back bit for bit."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.models.weights import InstalledWeights, Restorable

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.loaded import LoadedModel


class ValueMatrices(Restorable):
    """The value matrices of some layers, to be added to.

    In a half-precision model they are float32 until `restore`: a closed-form edit is smaller than the distance between
    neighbouring bfloat16 numbers in most entries and would be rounded away.

    Args:
        model: changed in place.
        layers: whose matrices.
    """

    def __init__(self, model: "LoadedModel", layers: Sequence[int]) -> None:
        from harness.models.precision import at_least_fp32

        wide = {}
        for layer in layers:
            path = model.path(model.layout.value_matrix, layer)
            for leaf, parameter in model.module(model.layout.value_matrix, layer).named_parameters():
                wide[f"{path}.{leaf}"] = at_least_fp32(parameter.detach())
        self._installed = InstalledWeights(model.model, wide)
        self._weights = {layer: model.value_matrix(layer)[1] for layer in layers}

    def add(self, layer: int, shift_KV: "Tensor") -> None:
        """Add the transpose of a shift, d_ff × d_model, to the matrix of a layer."""
        import torch

        weight_VK = self._weights[layer]
        with torch.no_grad():
            weight_VK.add_(shift_KV.T.to(weight_VK.dtype))

    def restore(self) -> None:
        """Every matrix as it was: the same object, the same bits, no cast. May be called again."""
        self._installed.restore()
