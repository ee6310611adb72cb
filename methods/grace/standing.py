"""What the model says to a target while a value stands in for the matrix, in one of the places that GRACE knows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.models.loaded import LoadedModel
from harness.models.precision import at_least_fp32
from harness.models.routed import matrix, output_replaced
from harness.tokens import Query
from methods.common.aligned import Row, Suffix, enter
from methods.common.paused import Paused, Targets
from methods.grace.codebook import placed, places


class AtLast:
    """Values at the last token of each prompt: that token and those behind it run again, in the blocks above."""

    def __init__(self, model: LoadedModel, queries: Sequence[Query], layer: int) -> None:
        rows = [Row(q.prompt_ids + q.target_ids[:-1], len(q.prompt_ids) - 1, q.target_ids) for q in queries]
        pivot, above = max(row.pivot for row in rows), layer % model.n_layers + 1

        def silence(_inputs_BTK: Tensor, outputs_BTD: Tensor) -> Tensor:
            """Nothing at the pivots, so that what is added there later is all that the matrix gives."""
            columns_T1 = torch.arange(outputs_BTD.shape[1], device=outputs_BTD.device)[:, None]
            return outputs_BTD.masked_fill(columns_T1 == pivot, 0)

        with output_replaced(matrix(model, layer), silence):
            stream = enter(model, rows, above)
        self._model, self._suffix = model, Suffix(model, stream, above)
        self._dtype = stream.residual_BTD.dtype
        self._targets = Targets(queries, model.device)

    def losses(self, values_BD: Tensor) -> Tensor:
        """-log p(target token | prompt, target tokens before it), mean over each row's tokens: B."""
        hidden_BSD = self._suffix.run(values_BD.to(self._dtype))
        logits_NV = self._model.head(self._model.final_norm(hidden_BSD[tuple(self._targets.places_2N)]))
        return self._targets.losses(at_least_fp32(logits_NV))


class BeforeLast:
    """Values at all tokens of each prompt before its last."""

    def __init__(self, model: LoadedModel, queries: Sequence[Query], layer: int) -> None:
        self._paused = Paused(model, queries, layer)
        self._places_BT = places(self._paused.prompt_BT, "prompt")

    def losses(self, values_BD: Tensor) -> Tensor:
        """As `AtLast.losses`."""
        return self._paused.losses(placed(values_BD, self._paused.outputs_BTD, self._places_BT))
