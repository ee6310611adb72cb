"""Inner products of embeddings: as they are, centred, or whitened.

The embeddings of a pretrained model share a direction: on SmolLM2-135M the mean cosine of two tokens is .44, so cosines
hardly tell tokens apart and a few tokens are near all others. Subtracting the mean removes the common part; whitening also
gives all principal directions the same variance.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

FLOOR = 1e-4
"""Smallest eigenvalue of the covariance that is used, relative to the largest: directions with less variance are noise."""

_ROWS = 4096  # embeddings converted to fp64 at once

Transform = Literal["none", "centred", "whitened"]


@dataclass(frozen=True, eq=False)
class Geometry:
    """The inner product ⟨e, f⟩ = (e - mean)ᵀ metric (f - mean) of two embeddings.

    No transformed copy of the table is made: one of the two factors is multiplied by the metric when it is read.

    Attributes:
        mean_D: fp64; None if nothing is subtracted.
        metric_DD: fp64, symmetric and positive definite; None for the identity.
    """

    mean_D: Tensor | None = None
    metric_DD: Tensor | None = None

    @classmethod
    def of(cls, embeddings_VD: Tensor, transform: Transform) -> Self:
        """The geometry of an embedding table; reads it once or twice.

        Whitening is PCA with eigenvalues λ, relative to the largest and at least `FLOOR`: metric = U diag(1 / λ) Uᵀ.
        """
        if transform == "none":
            return cls()
        n_tokens, width = embeddings_VD.shape
        mean_D = embeddings_VD.new_zeros(width, dtype=torch.float64)
        for rows_ND in torch.split(embeddings_VD, _ROWS):  # sum(dtype=…) of the whole table would convert it as a whole
            mean_D += rows_ND.double().sum(dim=0) / n_tokens
        if transform == "centred":
            return cls(mean_D)
        covariance_DD = embeddings_VD.new_zeros(width, width, dtype=torch.float64)
        for rows_ND in torch.split(embeddings_VD, _ROWS):
            centred_ND = rows_ND.double() - mean_D
            covariance_DD.addmm_(centred_ND.T, centred_ND, alpha=1 / n_tokens)
        variances_D, directions_DD = torch.linalg.eigh(covariance_DD)
        largest = variances_D[-1].clamp_min(torch.finfo(torch.float64).tiny)
        metric_DD = (directions_DD / (variances_D / largest).clamp_min(FLOOR)) @ directions_DD.T
        return cls(mean_D, (metric_DD + metric_DD.T) / 2)

    def centre(self, embeddings_ND: Tensor) -> Tensor:
        """Subtract the mean, in the precision of `embeddings_ND`."""
        return embeddings_ND if self.mean_D is None else embeddings_ND - self.mean_D.to(embeddings_ND.dtype)

    def dual(self, centred_ND: Tensor) -> Tensor:
        """Multiply centred embeddings by the metric, in fp64; plain dot products with the result are inner products."""
        if self.metric_DD is None:
            return centred_ND
        return (centred_ND.double() @ self.metric_DD).to(centred_ND.dtype)

    def products(self, centred_ND: Tensor, centred_CD: Tensor) -> Tensor:
        """Inner products of centred embeddings, N × C."""
        if len(centred_ND) < len(centred_CD):
            return self.dual(centred_ND) @ centred_CD.T
        return centred_ND @ self.dual(centred_CD).T

    def norms(self, centred_ND: Tensor) -> Tensor:
        """Norms of centred embeddings."""
        if self.metric_DD is None:
            norms_N: Tensor = torch.linalg.vector_norm(centred_ND, dim=-1)
            return norms_N
        return (centred_ND * self.dual(centred_ND)).sum(dim=-1).clamp_min(0.0).sqrt()

    def root(self) -> Tensor | None:
        """A matrix whose product with centred embeddings has these inner products as dot products; None for the identity."""
        if self.metric_DD is None:
            return None
        weights_D, directions_DD = torch.linalg.eigh(self.metric_DD)
        root_DD: Tensor = directions_DD * weights_D.clamp_min(0.0).sqrt()
        return root_DD

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that exist, by attribute name."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}
