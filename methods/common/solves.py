"""Closed-form updates of a linear layer in float64: ridge regression, plain and weighted by a covariance, in both forms.

Rows are examples: keys, N × K, are inputs of the layer; values, N × V, are the desired changes of its output; a shift S is
K × V, so that `keys @ S` is the resulting change of the outputs. The weight of an `nn.Linear` changes by Sᵀ.

The normal equations can be solved over the K entries of a key (primal) or over the N examples (dual, Woodbury). Both are
exact, but their costs differ widely: K is 11,008 for Llama-2-7B, N often below 1,000.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.errors import UserError


@dataclass(frozen=True, slots=True)
class Factor:
    """Cholesky factor of a symmetric positive definite matrix C = LLᵀ; create it with `Factor.of`.

    Attributes:
        lower_KK: L, float64.
    """

    lower_KK: Tensor

    @classmethod
    def of(cls, matrix_KK: Tensor, ridge: float = 0.0) -> "Factor":
        """Factorise C + ridge · mean(diag C) · I.

        Args:
            matrix_KK: C, symmetric; only the lower triangle is read.
            ridge: added to the diagonal, as a fraction of its mean.

        Raises:
            UserError: if the sum is not positive definite.
        """
        matrix_KK = matrix_KK.double()
        lower_KK, failed = torch.linalg.cholesky_ex(_plus_diagonal(matrix_KK, ridge * matrix_KK.diagonal().mean()))
        if failed:
            raise UserError(
                "the covariance of the keys is not positive definite: the corpus does not span all directions",
                fix="more moments_tokens, or moments_ridge: 1.0e-6",
            )
        return cls(lower_KK)

    @property
    def matrix_KK(self) -> Tensor:
        """C."""
        return self.lower_KK @ self.lower_KK.mT

    def plus_diagonal(self, value: float) -> "Factor":
        """The factor of C + value · I."""
        return Factor(torch.linalg.cholesky(_plus_diagonal(self.matrix_KK, value)))

    def divide(self, rows_NK: Tensor) -> Tensor:
        """C⁻¹ x for each row x, N × K in float64."""
        return torch.cholesky_solve(rows_NK.double().T, self.lower_KK).T

    def whiten(self, rows_NK: Tensor) -> Tensor:
        """L⁻¹ x for each row x, N × K in float64: keys with covariance C get covariance I."""
        white_KN: Tensor = torch.linalg.solve_triangular(self.lower_KK, rows_NK.double().T, upper=False)
        return white_KN.T

    def unwhiten(self, rows_NK: Tensor) -> Tensor:
        """L⁻ᵀ x for each row x, N × K in float64; `unwhiten(whiten(x))` equals `divide(x)`."""
        plain_KN: Tensor = torch.linalg.solve_triangular(self.lower_KK.T, rows_NK.double().T, upper=True)
        return plain_KN.T


def ridge(keys_NK: Tensor, values_NV: Tensor, weight: float) -> Tensor:
    """Ridge regression (KᵀK + λI)⁻¹ Kᵀ R, keys in rows, via the smaller of the primal and the dual system.

    Minimises ‖keys S − values‖² + λ‖S‖².

    Args:
        keys_NK: one key per row.
        values_NV: desired change of the layer's output for each key.
        weight: λ > 0.

    Returns:
        S, K × V in float64.
    """
    keys_NK, values_NV = keys_NK.double(), values_NV.double()
    if len(keys_NK) > keys_NK.shape[1]:
        return _solve(keys_NK.T @ keys_NK, weight, keys_NK.T @ values_NV)
    return keys_NK.T @ _solve(keys_NK @ keys_NK.T, weight, values_NV)


def ridge_gradients(keys_NK: Tensor, values_NV: Tensor, weight: float, outer_KV: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a loss through the solution S of `ridge`, given its gradient with respect to S (MALMEN, appendix A).

    Args:
        keys_NK, values_NV, weight: as for `ridge`.
        outer_KV: ∂L/∂S.

    Returns:
        ∂L/∂values, N × V, and ∂L/∂λ, a scalar, in float64. The keys count as constants.
    """
    keys_NK, values_NV, outer_KV = keys_NK.double(), values_NV.double(), outer_KV.double()
    width = outer_KV.shape[1]
    if len(keys_NK) > keys_NK.shape[1]:
        gram_KK = keys_NK.T @ keys_NK
        solved_K2V = _solve(gram_KK, weight, torch.cat([outer_KV, keys_NK.T @ values_NV], dim=1))
        adjoint_KV, shift_KV = solved_K2V[:, :width], solved_K2V[:, width:]
        return keys_NK @ adjoint_KV, -(adjoint_KV * shift_KV).sum()
    gram_NN = keys_NK @ keys_NK.T
    solved_N2V = _solve(gram_NN, weight, torch.cat([keys_NK @ outer_KV, values_NV], dim=1))
    adjoint_NV, weights_NV = solved_N2V[:, :width], solved_N2V[:, width:]
    return adjoint_NV, -(adjoint_NV * weights_NV).sum()


def moment_ridge(keys_NK: Tensor, values_NV: Tensor, moment: Factor, weight: float) -> Tensor:
    """MEMIT's update (λC + KᵀK)⁻¹ Kᵀ R, keys in rows (Meng et al. 2023, eq. 14), via the smaller of the two systems.

    Minimises ‖keys S − values‖² + λ tr(SᵀCS): with C = LLᵀ, ridge regression on the whitened keys, mapped back.

    Args:
        keys_NK: one key per edit.
        values_NV: desired change of the layer's output for each edit.
        moment: factor of C, the covariance of the keys whose values are to be preserved.
        weight: λ > 0: the number of such keys that C represents.

    Returns:
        S, K × V in float64. For N < K the cost, without factorising C, is 2 N K² + N K V.
    """
    white_NK, values_NV = moment.whiten(keys_NK), values_NV.double()
    if len(white_NK) > white_NK.shape[1]:
        return moment.unwhiten(ridge(white_NK, values_NV, weight).T).T
    weights_NV = _solve(white_NK @ white_NK.T, weight, values_NV)
    return moment.unwhiten(white_NK).T @ weights_NV


def _solve(gram_MM: Tensor, penalty: float, right_MV: Tensor) -> Tensor:
    if not penalty > 0:
        raise ValueError(f"a penalty of {penalty} leaves the system without a unique solution")
    lower_MM = torch.linalg.cholesky(_plus_diagonal(gram_MM, penalty))
    return torch.cholesky_solve(right_MV, lower_MM)


def _plus_diagonal(matrix_MM: Tensor, value: float | Tensor) -> Tensor:
    matrix_MM = matrix_MM.clone()
    matrix_MM.diagonal().add_(value)
    return matrix_MM
