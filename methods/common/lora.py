"""LoRA: low-rank updates of frozen linear layers, merged into the weights after training (Hu et al. 2021, arXiv 2106.09685)."""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.models.linear import is_linear, weight_of

if TYPE_CHECKING:
    from harness.models.loaded import LoadedModel

SCALE = 2.0
"""α / r of the paper with α = 2r, so that the scale of the updates does not depend on the rank."""


def block_linears(model: "LoadedModel", names: Collection[str] | None = None) -> list[nn.Module]:
    """Linear layers of all blocks, excluding the output head.

    Args:
        model: the model.
        names: of the layers inside attention and feed-forward modules, such as `q_proj`; None for all.

    Raises:
        UserError: if no layer has one of the names.
    """
    parts = [part for layer in range(model.n_layers) for part in model.block(layer).named_modules()]
    by_name = [(path.rpartition(".")[2], part) for path, part in parts if is_linear(part)]
    known = dict.fromkeys(name for name, _ in by_name)
    if names is not None and (unknown := [name for name in names if name not in known]):
        raise UserError(f"{model.ref.name} has no linear layer '{unknown[0]}'", fix=f"matrices: [{', '.join(known)}]")
    return [part for name, part in by_name if names is None or name in names]


class Update(nn.Module):
    """The update of one linear layer: x ↦ scale · B A x, initially zero.

    Attributes:
        A_RI: rank × inputs, Kaiming-uniform.
        B_OR: outputs × rank, zero.
    """

    def __init__(self, linear: nn.Module, rank: int, generator: torch.Generator, scale: float = SCALE) -> None:
        super().__init__()
        self.scale = scale
        weight_OI = weight_of(linear)
        drawn_RI = nn.init.kaiming_uniform_(torch.empty(rank, weight_OI.shape[1]), a=5**0.5, generator=generator)
        zeros_OR = torch.zeros(len(weight_OI), rank)
        self.A_RI, self.B_OR = (
            nn.Parameter(each.to(weight_OI.device, weight_OI.dtype)) for each in (drawn_RI, zeros_OR)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Values to add to the layer's output, … × outputs."""
        return self.scale * nn.functional.linear(nn.functional.linear(inputs, self.A_RI), self.B_OR)


@contextmanager
def low_rank(
    linears: Iterable[nn.Module], rank: int, generator: torch.Generator, scale: float = SCALE
) -> Iterator[list[nn.Parameter]]:
    """Attach a low-rank update to each layer and yield the parameters of all updates.

    On normal exit the updates are merged into the weights; after an exception the layers are unchanged. The rank may exceed
    a layer's dimensions; the update is then merely redundant.

    Args:
        linears: the layers; frozen weights get no gradient.
        rank: R.
        generator: draws A on the CPU.
        scale: factor of the updates, α / r.
    """
    updates = [(linear, Update(linear, rank, generator, scale)) for linear in linears]
    handles = [linear.register_forward_hook(_adding(update)) for linear, update in updates]
    try:
        yield [parameter for _, update in updates for parameter in update.parameters()]
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        for linear, update in updates:
            weight_of(linear).add_(scale * update.B_OR @ update.A_RI)


def _adding(update: Update) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    return lambda linear, inputs, outputs: outputs + update(inputs[0]).to(outputs.dtype)
