"""Forward passes that restart at one feed-forward matrix: training its replacement reruns only the blocks above it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from harness.errors import UserError
from harness.models.batching import Padded, right_padded
from harness.models.loaded import LoadedModel
from harness.models.routed import matrix, output_replaced
from harness.models.submodels import Streams, logits_at, streams_of
from harness.records import EditRequest
from harness.tokens import Query, joint_queries

Pad = Callable[[Sequence[Sequence[int]], torch.device], Padded]
"""Pads rows of ids into a rectangular batch."""


class Paused:
    """A forward pass over prompts and targets, paused at the second feed-forward matrix of a layer.

    Everything before and alongside the matrix runs once, without gradient. The residual stream is a sum, so the stream
    after the layer equals the stream with the matrix's output set to zero, plus that output (or, in Gemma, its norm).

    Args:
        model: its blocks up to `layer` must not change while this object is in use.
        queries: B prompts with their targets, of any length.
        layer: the block that contains the matrix.
        pad: arranges the rows in a batch, each in consecutive columns.

    Attributes:
        inputs_BTK, outputs_BTD: inputs and outputs of the matrix, padded by `pad` (by default on the right).
        mask_BT: True for prompt and target tokens.
        prompt_BT: True for prompt tokens.
    """

    def __init__(self, model: LoadedModel, queries: Sequence[Query], layer: int, pad: Pad = right_padded) -> None:
        seen: list[tuple[Tensor, Tensor]] = []

        def silence(inputs_BTK: Tensor, outputs_BTD: Tensor) -> Tensor:
            seen.append((inputs_BTK, outputs_BTD))
            return torch.zeros_like(outputs_BTD)

        self._model, self._layer = model, layer % model.n_layers
        with output_replaced(matrix(model, layer), silence):
            batch = pad([query.prompt_ids + query.target_ids for query in queries], model.device)
            self._silenced = streams_of(model, batch, self._layer + 1)
        ((self.inputs_BTK, self.outputs_BTD),) = seen
        self.mask_BT = self._silenced.mask_BT.bool()
        lengths_B1 = torch.tensor([len(query.prompt_ids) for query in queries], device=model.device)[:, None]
        self.prompt_BT = self.mask_BT & (self.mask_BT.cumsum(-1) <= lengths_B1)
        self._targets = Targets(queries, model.device)
        firsts: list[int] = batch.mask_BT.argmax(-1).tolist()
        starts = [first + len(query.prompt_ids) - 1 for first, query in zip(firsts, queries, strict=True)]
        self._places = [(row, starts[row] + step) for row, step in self._targets.places]

    def losses(self, outputs_BTD: Tensor) -> Tensor:
        """-log p(target token | prompt, target tokens before it), mean over each row's tokens.

        Args:
            outputs_BTD: replaces the matrix's output.

        Returns:
            B losses, at least fp32, differentiable. Rows are independent of each other.
        """
        silenced_BTD = self._silenced.residual_BTD
        residual_BTD = silenced_BTD + self._model.into_stream(self._layer, outputs_BTD.to(silenced_BTD.dtype))
        entering = Streams(residual_BTD, self._silenced.mask_BT, self._silenced.positions_BT)
        logits_NV = logits_at(self._model, entering, self._layer + 1, self._places)
        return self._targets.losses(logits_NV)


class Targets:
    """The N target ids of B queries, in query order.

    Attributes:
        places: (row, step) of each id, both from 0; `places_2N` is the same as a tensor.
    """

    def __init__(self, queries: Sequence[Query], device: torch.device) -> None:
        counts = [len(query.target_ids) for query in queries]
        self.places = [(row, step) for row, count in enumerate(counts) for step in range(count)]
        self._ids_N = torch.tensor([id_ for query in queries for id_ in query.target_ids], device=device)
        self.places_2N = torch.tensor(self.places, device=device).reshape(-1, 2).T
        self._counts_B, self._longest = torch.tensor(counts, device=device), max(counts)

    def losses(self, logits_NV: Tensor) -> Tensor:
        """Mean cross-entropy over each query's ids, B; a NaN in one query does not affect the others."""
        losses_N = torch.nn.functional.cross_entropy(logits_NV, self._ids_N, reduction="none")
        table_BA = losses_N.new_zeros(len(self._counts_B), self._longest)
        return table_BA.index_put(tuple(self.places_2N), losses_N).sum(1) / self._counts_B


def edit_queries(model: LoadedModel, requests: Sequence[EditRequest]) -> list[Query]:
    """Prompt and new target of each request, tokenised jointly.

    Raises:
        UserError: if a request is longer than the model's context.
    """
    limit = model.context
    queries = joint_queries(model.tokenizer, [(request.prompt, request.target_new) for request in requests])
    for request, query in zip(requests, queries, strict=True):
        length = len(query.prompt_ids) + len(query.target_ids)
        if length > limit:
            raise UserError(
                f"record {request.record_id}: prompt and target have {length} tokens, but {model.ref.name} reads {limit}",
                fix="leave the record out, or choose a model with a longer context",
            )
    return queries
