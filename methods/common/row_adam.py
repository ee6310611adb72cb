"""Adam for rows that have nothing to do with each other: one row per request, all trained in one batch."""

import torch
from torch import Tensor


class RowAdam:
    """Adam (Kingma and Ba 2015) on the rows of a tensor, each with a clock of its own.

    Adam works on each number alone. So if the loss is the sum of losses that read one row each, a step here is one step
    of `torch.optim.Adam` per row, and a row that is left out of a step is as if that step had not been.

    Args:
        rows: N rows of any shape, N × …, at least fp32; changed in place.
        lr: learning rate.
        betas: decay of the running means of the gradient and of its square.
        eps: added to the root of the second.
    """

    def __init__(self, rows: Tensor, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.rows = rows
        self.lr, self.betas, self.eps = lr, betas, eps
        self._mean = torch.zeros_like(rows, requires_grad=False)
        self._square = torch.zeros_like(rows, requires_grad=False)
        self._steps_N = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)

    @torch.no_grad()
    def step(self, gradient: Tensor, active_N: Tensor | None = None) -> None:
        """Move the active rows against their gradient.

        Args:
            gradient: of the sum of the rows' losses, the shape of the rows; not read in rows that are not active.
            active_N: booleans, one per row; None for all. A frozen row keeps its value and its running means.
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
        """One value per row in a shape that spreads over the row."""
        return values_N.reshape(-1, *[1] * (self.rows.dim() - 1))
