"""Factored gradients of an edit: ∇W = Σ_t δ_t x_tᵀ, from the inputs and output gradients of each edited matrix (MEND §3)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.models.linear import is_linear
from harness.models.loaded import LoadedModel
from harness.models.precision import working_dtype
from harness.models.routed import output_replaced
from harness.models.submodels import Streams, logits_at
from methods.common.prediction import PredictionRow


@dataclass(frozen=True, slots=True)
class GradientFactors:
    """The gradient of a batch's loss with respect to one matrix, as N pairs of factors in at least fp32.

    Attributes:
        inputs_NK: input x of the matrix at each token.
        gradients_ND: gradient δ of the loss with respect to the matrix's output at that token.
        rows_N, columns_N: position of the token in the batch.
        shape: rows and columns of the batch, B and T.
    """

    inputs_NK: Tensor
    gradients_ND: Tensor
    rows_N: Tensor
    columns_N: Tensor
    shape: tuple[int, int]

    def spread(self, values_NS: Tensor) -> Tensor:
        """Scatter one value per token to its position in the batch, B × T × S, zero elsewhere."""
        spread_BTS = values_NS.new_zeros(*self.shape, values_NS.shape[-1])
        return spread_BTS.index_put((self.rows_N, self.columns_N), values_NS)


def edited_modules(model: LoadedModel, layers: Sequence[int], matrices: Sequence[str]) -> dict[str, nn.Module]:
    """The edited linear modules, keyed by the name of their weight, in layer order.

    Raises:
        UserError: for a matrix that the model's feed-forward modules do not have.
    """
    modules = {}
    for layer in layers:
        path = model.path(model.layout.mlp, layer)
        linear = {name: child for name, child in model.module(path).named_children() if is_linear(child)}
        for leaf in matrices:
            if leaf not in linear:
                raise UserError(
                    f"{model.ref.name} has no feed-forward matrix '{leaf}'", fix=f"matrices: [{', '.join(linear)}]"
                )
            modules[f"{path}.{leaf}.weight"] = linear[leaf]
    return modules


def label_losses(logits_NV: Tensor, rows: Sequence[PredictionRow]) -> Tensor:
    """Mean -log p of each row's labels, from the logits at all positions, row by row.

    Returns:
        B losses, differentiable.
    """
    labels_N = torch.tensor([label for row in rows for label in row.labels], device=logits_NV.device)
    return row_means(nn.functional.cross_entropy(logits_NV, labels_N, reduction="none"), rows)


def row_means(values_N: Tensor, rows: Sequence[PredictionRow]) -> Tensor:
    """Mean of each row's values, B; `values_N` holds all positions, row by row."""
    device = values_N.device
    counts_B = torch.tensor([len(row.places) for row in rows], device=device)
    rows_N = torch.arange(len(rows), device=device).repeat_interleave(counts_B)
    return values_N.new_zeros(len(rows)).index_add(0, rows_N, values_N) / counts_B


def places_of(rows: Sequence[PredictionRow]) -> list[tuple[int, int]]:
    """(row, column) of every scored position, row by row."""
    return [(index, column) for index, row in enumerate(rows) for column in row.places]


def factors_of(
    model: LoadedModel,
    modules: Mapping[str, nn.Module],
    entering: Streams,
    layer: int,
    rows: Sequence[PredictionRow],
    weights_B: Tensor,
    places: Sequence[tuple[int, int]] | None = None,
) -> dict[str, GradientFactors]:
    """Compute the factored gradient of Σ_b weight_b · (mean -log p of row b's labels).

    Args:
        model: the frozen model; no parameter requires a gradient, before or after.
        modules: the edited modules by weight name.
        entering: residual streams of the rows at the input of `layer`, right-padded.
        layer: the lowest edited block.
        rows: scored positions and labels.
        weights_B: weight of each row's loss.
        places: (row, column) of the tokens whose factors are returned, even where one is zero. By default all tokens where
            none is: no padding, and no token that no label depends on.

    Returns:
        Detached factors for each module.
    """
    with _observed(modules) as seen, torch.enable_grad():
        losses_B = label_losses(logits_at(model, entering, layer, places_of(rows)), rows)
        gradients = torch.autograd.grad(losses_B @ weights_B.to(losses_B.dtype), [seen[name][1] for name in modules])
    return {name: _factors(seen[name][0], gradient, places) for name, gradient in zip(modules, gradients, strict=True)}


@contextmanager
def _observed(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Record each module's (input, output) by name inside the `with` block; the outputs require gradients."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def observe(name: str, inputs: Tensor, outputs: Tensor) -> Tensor:
        seen[name] = (inputs.detach(), outputs if outputs.requires_grad else outputs.requires_grad_())
        return outputs.clone()  # Falcon adds to it in place

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(output_replaced(module, partial(observe, name)))
        yield seen


def _factors(inputs_BTK: Tensor, gradients_BTD: Tensor, places: Sequence[tuple[int, int]] | None) -> GradientFactors:
    dtype = working_dtype(inputs_BTK)
    if places is None:
        rows_N, columns_N = (inputs_BTK.any(-1) & gradients_BTD.any(-1)).nonzero(as_tuple=True)
    else:
        rows_N, columns_N = torch.tensor(places, device=inputs_BTK.device).T
    inputs_NK, gradients_ND = inputs_BTK[rows_N, columns_N], gradients_BTD[rows_N, columns_N]
    shape = (len(inputs_BTK), inputs_BTK.shape[1])
    return GradientFactors(inputs_NK.to(dtype), gradients_ND.to(dtype), rows_N, columns_N, shape)
