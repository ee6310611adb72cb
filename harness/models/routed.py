"""Models with a memory at one of their matrices: each row of a batch is routed to the memory or to the model."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from harness.api import EditedModel, Ends, State, TokenScore
from harness.models.batching import right_padded
from harness.models.edited import Growing, WeightEditedModel
from harness.models.loaded import LoadedModel
from harness.models.placement import at_home
from harness.models.submodels import part
from harness.tokens import Query

Reads = Literal["prompt", "sequence", "step"]
"""Tokens that a routing decision may read.

`prompt`: the prompt only; decided once when the prompt is read and kept while decoding. Never sees the target.
`sequence`: all tokens; in teacher forcing this includes the target, so the answer influences the routing. In generation it is
the text so far, re-read from the start for each new id, as without a key-value cache.
`step`: as `sequence` in teacher forcing; in generation the prompt, then a new decision at each decoding step on that token alone.
"""

Route = TypeVar("Route")
Found = TypeVar("Found")


class Memory(Protocol[Route]):
    """A memory at a second feed-forward matrix that can replace the matrix's output.

    `route` and `answer` get the matrix's input, B × T × K, and output, B × T × D. A row must not depend on other rows or on
    its padding.
    """

    def route(self, inputs_BTK: Tensor, outputs_BTD: Tensor, read_BT: Tensor) -> Route:
        """Decide for each row.

        Args:
            inputs_BTK, outputs_BTD: input and output of the matrix.
            read_BT: True for tokens that the decision may read, at least one per row.

        Returns:
            The decision, passed on to `answer` and `scope`.
        """
        ...

    def answer(self, inputs_BTK: Tensor, outputs_BTD: Tensor, read_BT: Tensor, route: Route) -> Tensor:
        """Compute the output that replaces the matrix's.

        Args:
            inputs_BTK, outputs_BTD: input and output of the matrix.
            read_BT: True for tokens that the current decision read; all False while an earlier decision is kept.
            route: the decision.

        Returns:
            B × T × D; rows not routed to the memory equal `outputs_BTD` bit for bit.
        """
        ...

    def scope(self, route: Route) -> Tensor:
        """Routing score of each row: B values in [0, 1], where 1 means edited."""
        ...


class RoutedModel(EditedModel, Generic[Route]):
    """An `EditedModel` around a loaded model with a memory. Hooks exist only during its calls; weights never change.

    Args:
        model: the unedited model.
        layer: the block with the matrix.
        memory: the memory.
        reads: tokens that routing decisions may read.
        diagnostics: returned by `diagnostics`.
        state: returned by `state`.
    """

    def __init__(
        self,
        model: LoadedModel,
        layer: int,
        memory: Memory[Route],
        reads: Reads = "prompt",
        diagnostics: Mapping[str, float] | None = None,
        state: State | None = None,
    ) -> None:
        self._model = model
        self._plain = WeightEditedModel(model)
        self._layer = layer % model.n_layers
        self._memory = memory
        self._reads = reads
        self._diagnostics = dict(diagnostics or {})
        self._state = state or {}

    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """Arg-max id at each target position; whether the routing sees the target depends on `reads`."""
        return self._forced(self._plain.teacher_forced, queries, self._reads != "prompt")

    def score(self, queries: Sequence[Query], *, reads_targets: bool = False) -> list[list[TokenScore]]:
        """Log-probabilities of the target ids, routed as in `teacher_forced` unless `reads_targets`."""
        return self._forced(self._plain.score, queries, reads_targets or self._reads != "prompt")

    def _forced(
        self, ask: Callable[[Sequence[Query]], list[list[Found]]], queries: Sequence[Query], reads_targets: bool
    ) -> list[list[Found]]:
        """What `ask` finds at each target position; the routing reads the prompts, or the targets too."""
        lengths = [len(query.prompt_ids) + len(query.target_ids) * reads_targets for query in queries]
        asked = [self._longer(query) for query in queries] if reads_targets else queries
        with self._routing(lengths):
            return [found[: len(query.target_ids)] for query, found in zip(queries, ask(asked), strict=True)]

    def _longer(self, query: Query) -> Query:
        """With one more position: the last target id is not the context of any prediction, but the routing must see it.

        A text that fills the model's context, and one id more, has no such position; its last id is not read.
        """
        if len(query.prompt_ids) + len(query.target_ids) > self._model.positions:
            return query
        return replace(query, target_ids=(*query.target_ids, query.target_ids[-1]))

    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """Greedy continuation of each prompt by as many ids as its target has."""
        return self._decoded(queries, None)

    def generate_until(self, queries: Sequence[Query], ends: Ends) -> list[list[int]]:
        """Generate as above until each row ends."""
        return self._decoded(queries, ends)

    def _decoded(self, queries: Sequence[Query], ends: Ends | None) -> list[list[int]]:
        if self._reads == "sequence":
            return self._decoded_afresh(queries, Growing(queries, ends))
        with self._routing([len(query.prompt_ids) for query in queries], decides_each_step=self._reads == "step"):
            return self._plain.generate(queries) if ends is None else self._plain.generate_until(queries, ends)

    def _decoded_afresh(self, queries: Sequence[Query], growing: Growing) -> list[list[int]]:
        """Generate as above without a cache: the text so far becomes a new prompt for each next id."""
        given: list[list[int]] = [[] for _ in queries]
        while rows := growing.rows:
            asked = [
                replace(queries[row], prompt_ids=(*queries[row].prompt_ids, *given[row]), target_ids=(0,))
                for row in rows
            ]
            ids_B = torch.zeros(len(queries), dtype=torch.long)
            with self._routing([len(query.prompt_ids) for query in asked]):
                for row, ids in zip(rows, self._plain.generate(asked), strict=True):
                    given[row] += ids
                    ids_B[row] = ids[0]
            growing.add(ids_B)
        return growing.continuations()

    def scope(self, queries: Sequence[Query]) -> list[float]:
        """Routing score of each prompt, without its target; runs no block above the memory's."""
        if not queries:
            return []
        batch = right_padded([query.prompt_ids for query in queries], self._model.device)
        with self._routing([len(query.prompt_ids) for query in queries]) as decided, torch.no_grad():
            below = part(self._model, 0, self._layer + 1)
            stream_BTD = self._model.first_stream(batch.ids_BT, batch.positions_BT)
            below(stream_BTD, attention_mask=batch.mask_BT, position_ids=batch.positions_BT)
        scopes: list[float] = self._memory.scope(decided[-1]).tolist()
        return scopes

    def diagnostics(self) -> Mapping[str, float]:
        """The diagnostics given at construction."""
        return dict(self._diagnostics)

    def state(self) -> State:
        """The state given at construction."""
        return self._state

    @contextmanager
    def _routing(self, lengths: Sequence[int], decides_each_step: bool = False) -> Iterator[list[Route]]:
        """Enable the memory inside the body.

        Args:
            lengths: number of leading tokens of each row that the decision reads.
            decides_each_step: also make a new decision for each later token.

        Yields:
            The decisions, in order.
        """
        lengths_B1 = torch.tensor(lengths, device=self._model.device)[:, None]
        read_BT = torch.empty(0, dtype=torch.bool)
        decided: list[Route] = []

        def before(_module: nn.Module, _args: tuple[Any, ...], given: dict[str, Any]) -> None:
            """Select the tokens of this forward pass that may be read, from their positions; works for padding on either side."""
            nonlocal read_BT
            positions_BT: Tensor = given["position_ids"]
            read_BT = given["attention_mask"][:, -positions_BT.shape[1] :].bool()
            if not (decides_each_step and decided):
                read_BT = read_BT & (positions_BT < lengths_B1)

        def answer(inputs_BTK: Tensor, outputs_BTD: Tensor) -> Tensor:
            if not decided or decides_each_step:
                decided.append(self._memory.route(inputs_BTK, outputs_BTD, read_BT))
            return self._memory.answer(inputs_BTK, outputs_BTD, read_BT, decided[-1])

        handle = self._model.backbone.register_forward_pre_hook(before, with_kwargs=True)
        try:
            with output_replaced(matrix(self._model, self._layer), answer):
                yield decided
        finally:
            handle.remove()


def matrix(model: LoadedModel, layer: int) -> nn.Module:
    """The second feed-forward matrix of a layer: K = d_ff in, D = d_model out; see `linear` for its weight and bias."""
    return model.module(model.layout.value_matrix, layer)


@contextmanager
def output_replaced(module: nn.Module, answer: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Replace the output of `module` by a copy of `answer(input, output)` inside the body; Falcon's blocks add to it in place.

    All three are where the streams are.
    """

    def replace(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return answer(at_home(module, args[0]), at_home(module, output)).to(output.device, copy=True)

    handle = module.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def last_of(read_BT: Tensor) -> Tensor:
    """Column of the last readable token of each row, B; 0 for a row without any."""
    columns_T = torch.arange(1, read_BT.shape[1] + 1, device=read_BT.device)
    return (read_BT * columns_T).argmax(-1)
