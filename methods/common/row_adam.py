"""Adam for independent rows: one row per request, all optimised in one batch."""

import torch
from torch import Tensor


class RowAdam:
    """Adam (Kingma and Ba 2015) on the rows of a tensor, with a separate step count for each row.

    Adam is elementwise. So if the loss is a sum of per-row losses, a step here equals one step of `torch.optim.Adam` per
    row, and a row that is skipped behaves as if the step had not happened.

    Args:
        rows: N rows of any shape, N × …, at least fp32; updated in place.
        lr: learning rate.
        betas: decay rates of the running averages of the gradient and its square.
        eps: added to the denominator.
    """

    def __init__(self, rows: Tensor, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.rows = rows
        self.lr, self.betas, self.eps = lr, betas, eps
        self._mean = torch.zeros_like(rows, requires_grad=False)
        self._square = torch.zeros_like(rows, requires_grad=False)
        self._steps_N = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)

    @torch.no_grad()
    def step(self, gradient: Tensor, active_N: Tensor | None = None) -> None:
        """Update the active rows.

        Args:
            gradient: gradient of the sum of the rows' losses, shaped like the rows; ignored in inactive rows.
            active_N: one boolean per row; None means all. Inactive rows keep their values and running averages.
        """
        if active_N is None:
            active_N = torch.ones(len(self.rows), dtype=torch.bool, device=self.rows.device)
        active = self._beside(active_N)
        self._steps_N += active_N
        beta, beta_square = self.betas
        mean = torch.lerp(self._mean, gradient, 1 - beta)
        square = (self._square * beta_square).addcmul_(gradient, gradient, value=1 - beta_square)
        size = self._beside((self.lr / (1 - beta**self._steps_N)).to(self.rows.dtype))
        correction = self._beside((1 - beta_square**self._steps_N).sqrt().to(self.rows.dtype))
        moved = self.rows - size * mean / ((square.sqrt() / correction).add_(self.eps))
        for kept, new in ((self._mean, mean), (self._square, square), (self.rows, moved)):
            kept.copy_(torch.where(active, new, kept))

    def _beside(self, values_N: Tensor) -> Tensor:
        """Reshape one value per row so that it broadcasts over the row."""
        return values_N.reshape(-1, *[1] * (self.rows.dim() - 1))
