"""The null space of ordinary keys, and updates inside it that also protect the keys of earlier edits (AlphaEdit §3).

With P the projection on the null space, K the new keys, R the wished changes and K_p the earlier keys, all in rows, the
published update is ΔWᵀ = (P (KᵀK + K_pᵀK_p) + λI)⁻¹ P Kᵀ R. It lies in the null space, so it is the ridge regression of R on
the projected keys K P, with the earlier keys K_p P as further examples whose output is not to change: the same solution from a
symmetric system, over the examples if they are fewer than the entries of a key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.api import ArtifactSpec, Context, State
from harness.errors import UserError
from methods.common import moments
from methods.common.layerwise import UpdateRule
from methods.common.solves import ridge


@dataclass(frozen=True, slots=True)
class NullSpace:
    """A subspace of the keys of a layer, given by an orthonormal basis of it or of its orthogonal complement.

    Attributes:
        basis_DK: the smaller basis of the two, in rows.
        is_complement: whether it spans what is orthogonal to the subspace.
    """

    basis_DK: Tensor
    is_complement: bool

    @classmethod
    def of(cls, moment_KK: Tensor, threshold: float) -> "NullSpace":
        """The eigenvectors of a covariance C = E[k kᵀ] whose eigenvalues are below the threshold.

        Raises:
            UserError: if there are none.
        """
        values_K, vectors_KK = torch.linalg.eigh(moment_KK.double())
        rank = int((values_K < threshold).sum())
        if not rank:
            raise UserError(
                f"alphaedit: no direction of the keys has a mean square below {threshold:g}; the smallest is "
                f"{float(values_K[0]):.3g}",
                fix=f"null_threshold: {float(values_K[len(values_K) // 2]):.2g}",
            )
        is_complement = 2 * rank > len(values_K)
        return cls((vectors_KK[:, rank:] if is_complement else vectors_KK[:, :rank]).mT, is_complement)

    @classmethod
    def load(cls, folder: Path, layer: int, device: torch.device) -> "NullSpace":
        """Read the null space of a layer from an artifact."""
        ((name, basis_DK),) = load_file(folder / moments.file_name(layer)).items()
        return cls(basis_DK.to(device).double(), name == "complement")

    def save(self, folder: Path, layer: int) -> None:
        """Write the basis, in float32."""
        name = "complement" if self.is_complement else "basis"
        save_file({name: self.basis_DK.float().cpu().contiguous()}, folder / moments.file_name(layer))

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        size, width = self.basis_DK.shape
        return width - size if self.is_complement else size

    def project(self, rows_NK: Tensor) -> Tensor:
        """The part of each row that lies in the subspace, N × K in float64."""
        rows_NK = rows_NK.double()
        along_NK = rows_NK @ self.basis_DK.mT @ self.basis_DK
        return rows_NK - along_NK if self.is_complement else along_NK


def build(spec: ArtifactSpec, context: Context, folder: Path) -> None:
    """Write the null space of each layer that the covariance statistics of `spec` have.

    Raises:
        UserError: if a layer has none.
    """
    source = context.artifact(spec.needs["moments"])
    for layer in moments.layers(source):
        moment = moments.load(source, layer, context.device)
        with context.clock.phase("setup"):
            space = NullSpace.of(moment.matrix_KK, spec.identity["threshold"])
        space.save(folder, layer)


class Protecting(UpdateRule):
    """Updates in the null spaces that keep the outputs for the keys of earlier edits, as far as keys can be told apart.

    Args:
        spaces: null space by layer.
        weight: λ, the weight of an update's norm.
        state: earlier keys, as returned by `state`.
    """

    remembers: ClassVar[bool] = True

    def __init__(self, spaces: Mapping[int, NullSpace], weight: float, state: State) -> None:
        self._spaces, self._weight = spaces, weight
        self._earlier = {layer: state[_name(layer)] for layer in spaces if _name(layer) in state}

    def shift(self, layer: int, keys_NK: Tensor, change_NV: Tensor) -> Tensor:
        """AlphaEdit eq. 12: ridge regression on all projected keys, with zero change for the earlier ones."""
        keys_NK, change_NV = self._spaces[layer].project(keys_NK), change_NV.double()
        if (earlier_EK := self._earlier.get(layer)) is not None:
            keys_NK = torch.cat([earlier_EK, keys_NK])
            change_NV = torch.cat([change_NV.new_zeros(len(earlier_EK), change_NV.shape[1]), change_NV])
        return ridge(keys_NK, change_NV, self._weight)

    def written(self, layer: int, keys_NK: Tensor) -> None:
        """Protect these keys from now on.

        Only Σ k kᵀ matters. So more keys than they have entries are replaced by as many rows as that, with the same sum.
        """
        rows_NK = self._spaces[layer].project(keys_NK)
        if layer in self._earlier:
            rows_NK = torch.cat([self._earlier[layer], rows_NK])
        if len(rows_NK) > rows_NK.shape[1]:
            rows_NK = torch.linalg.qr(rows_NK, mode="r").R
        self._earlier[layer] = rows_NK

    def state(self) -> dict[str, Tensor]:
        """The projected keys of all edits so far, by layer."""
        return {_name(layer): rows_EK for layer, rows_EK in self._earlier.items()}


def _name(layer: int) -> str:
    return f"keys.{layer}"
