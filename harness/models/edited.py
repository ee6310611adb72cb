"""Models edited in their weights, evaluated by running the model itself."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from harness.api import EditedModel, Ends, State, TokenScore
from harness.models.batching import Padded, left_padded, right_padded
from harness.tokens import Query

if TYPE_CHECKING:
    import torch

    from harness.models.loaded import LoadedModel

Item = TypeVar("Item")


class WeightEditedModel(EditedModel):
    """An `EditedModel` around a loaded model that was edited in place. Each call is one batch; the caller chooses its size.

    Args:
        model: the model with edited weights.
        on_revert: restores the weights; None for the unedited model.
        diagnostics: returned by `diagnostics`.
        state: returned by `state`.
        remarks: returned by `remarks`.
    """

    def __init__(
        self,
        model: "LoadedModel",
        on_revert: Callable[[], None] | None = None,
        diagnostics: Mapping[str, float] | None = None,
        state: State | None = None,
        remarks: Sequence[str] = (),
    ) -> None:
        self._model = model
        self._on_revert = on_revert
        self._diagnostics = dict(diagnostics or {})
        self._state = state or {}
        self._remarks = remarks

    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """Arg-max id at each target position: one right-padded forward pass, with the head at target positions only."""
        import torch

        if not queries:
            return []
        batch = right_padded([query.prompt_ids + query.target_ids[:-1] for query in queries], self._model.device)
        rows, columns = _target_positions(queries)
        with torch.no_grad():
            hidden_BTD = self._hidden(batch)
            flat = self._model.logits(hidden_BTD[rows, columns]).argmax(-1).tolist()
        lengths = [len(query.target_ids) for query in queries]
        return _split(flat, lengths)

    def score(self, queries: Sequence[Query], *, reads_targets: bool = False) -> list[list[TokenScore]]:
        """Log-probabilities of the target ids, in float32 at least: the same forward pass as `teacher_forced`."""
        import torch

        from harness.models.precision import at_least_fp32

        if not queries:
            return []
        batch = right_padded([query.prompt_ids + query.target_ids[:-1] for query in queries], self._model.device)
        rows, columns = _target_positions(queries)
        with torch.no_grad():
            logits_NV = at_least_fp32(self._model.logits(self._hidden(batch)[rows, columns]))
            logprobs_NV = logits_NV.log_softmax(-1)
            wanted_N1 = torch.tensor([id_ for query in queries for id_ in query.target_ids])[:, None]
            wanted_N = logprobs_NV.gather(-1, wanted_N1.to(logprobs_NV.device))[:, 0]
            best_N = logits_NV.argmax(-1)
            leading_N = logprobs_NV.gather(-1, best_N[:, None])[:, 0]
        flat = list(map(TokenScore, wanted_N.tolist(), best_N.tolist(), leading_N.tolist()))
        return _split(flat, [len(query.target_ids) for query in queries])

    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """Left-padded greedy decoding with a key-value cache; end-of-text does not stop the generation."""
        return self._decoded(queries, None)

    def generate_until(self, queries: Sequence[Query], ends: Ends) -> list[list[int]]:
        """Generate as above; rows that have ended keep their place in the batch until all have."""
        return self._decoded(queries, ends)

    def _decoded(self, queries: Sequence[Query], ends: Ends | None) -> list[list[int]]:
        import torch

        from harness.models.rope import fixed_context

        if not queries:
            return []
        growing = Growing(queries, ends)
        context = fixed_context(self._model.model)
        if context is not None and max(len(query.prompt_ids + query.target_ids) for query in queries) > context:
            return self._decoded_uncached(queries, growing)
        batch = left_padded([query.prompt_ids for query in queries], self._model.device)
        ids_BT, mask_BT, positions_BT, cache = batch.ids_BT, batch.mask_BT, batch.positions_BT, None
        with torch.no_grad():
            while growing.rows:
                output = self._model.backbone(
                    input_ids=ids_BT,
                    attention_mask=mask_BT,
                    position_ids=positions_BT,
                    past_key_values=cache,
                    use_cache=True,
                )
                cache = output.past_key_values
                ids_BT = self._model.logits(output.last_hidden_state[:, -1]).argmax(-1, keepdim=True)
                mask_BT = torch.cat([mask_BT, torch.ones_like(ids_BT)], dim=1)
                positions_BT = positions_BT[:, -1:] + 1
                growing.add(ids_BT[:, 0])
        return growing.continuations()

    def _decoded_uncached(self, queries: Sequence[Query], growing: "Growing") -> list[list[int]]:
        """Generate as above, rereading each row for each id, because its rotary frequencies may change as it becomes longer."""
        import torch

        rows = [list(query.prompt_ids) for query in queries]
        with torch.no_grad():
            while growing.rows:
                batch = left_padded(rows, self._model.device)
                hidden_BTD = self._hidden(batch)
                ids_B = self._model.logits(hidden_BTD[:, -1]).argmax(-1)
                growing.add(ids_B)
                for row, id_ in zip(rows, ids_B.tolist(), strict=True):
                    row.append(id_)
        return growing.continuations()

    def diagnostics(self) -> Mapping[str, float]:
        """The diagnostics given at construction."""
        return dict(self._diagnostics)

    def state(self) -> State:
        """The state given at construction."""
        return self._state

    def remarks(self) -> Sequence[str]:
        """The remarks given at construction."""
        return self._remarks

    def revert(self) -> None:
        """Restore the weights."""
        if self._on_revert is not None:
            self._on_revert()

    def _hidden(self, batch: Padded) -> "torch.Tensor":
        """Final hidden states of a batch, B × T × D, in one pass without a cache."""
        hidden_BTD: torch.Tensor = self._model.backbone(
            input_ids=batch.ids_BT, attention_mask=batch.mask_BT, position_ids=batch.positions_BT, use_cache=False
        ).last_hidden_state
        return hidden_BTD


class InstalledModel(EditedModel):
    """A model that holds its edited weights only during a call, so that the unedited model can be asked in between.

    Args:
        model: the unedited model.
        weights: the edited weights, as `harness.models.weights.changed` returns them.
        diagnostics: returned by `diagnostics`.
    """

    def __init__(
        self,
        model: "LoadedModel",
        weights: "Mapping[str, torch.Tensor]",
        diagnostics: Mapping[str, float] | None = None,
    ) -> None:
        self.weights = weights
        self._model = model
        self._plain = WeightEditedModel(model, diagnostics=diagnostics)

    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """As `WeightEditedModel.teacher_forced`."""
        with self.installed():
            return self._plain.teacher_forced(queries)

    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """As `WeightEditedModel.generate`."""
        with self.installed():
            return self._plain.generate(queries)

    def generate_until(self, queries: Sequence[Query], ends: Ends) -> list[list[int]]:
        """As `WeightEditedModel.generate_until`."""
        with self.installed():
            return self._plain.generate_until(queries, ends)

    def score(self, queries: Sequence[Query], *, reads_targets: bool = False) -> list[list[TokenScore]]:
        """As `WeightEditedModel.score`."""
        with self.installed():
            return self._plain.score(queries)

    def diagnostics(self) -> Mapping[str, float]:
        """The diagnostics given at construction."""
        return self._plain.diagnostics()

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Install the edited weights inside the body."""
        from harness.models.weights import InstalledWeights

        installed = InstalledWeights(self._model.model, self.weights)
        try:
            yield
        finally:
            installed.restore()


class Growing:
    """The continuations of a batch: each gets one id per step until it reaches its limit or ends.

    Args:
        queries: a continuation has at most as many ids as its query's target.
        ends: see `EditedModel.generate_until`; None if only limits count, and ids then stay on their device to the end.
    """

    def __init__(self, queries: Sequence[Query], ends: Ends | None) -> None:
        self._limits = [len(query.target_ids) for query in queries]
        self._ends = ends
        self._steps: list[torch.Tensor] = []
        self._lengths = dict[int, int]()

    @property
    def step(self) -> int:
        """Number of ids that every row has got."""
        return len(self._steps)

    @property
    def rows(self) -> list[int]:
        """The rows whose continuation needs another id."""
        return [row for row, limit in enumerate(self._limits) if self.step < self._lengths.get(row, limit)]

    def add(self, ids_B: "torch.Tensor") -> None:
        """Add the next id of every row, including those that need none."""
        self._steps.append(ids_B)
        if self._ends is None:
            return
        for row, id_ in enumerate(ids_B.tolist()):
            if row not in self._lengths and self.step <= self._limits[row] and self._ends(row, id_):
                self._lengths[row] = self.step

    def continuations(self) -> list[list[int]]:
        """The ids of each row up to its limit or end."""
        import torch

        made: list[list[int]] = torch.stack(self._steps, dim=1).tolist() if self._steps else [[] for _ in self._limits]
        return [
            ids[: self._lengths.get(row, limit)]
            for row, (ids, limit) in enumerate(zip(made, self._limits, strict=True))
        ]


def _target_positions(queries: Sequence[Query]) -> tuple[list[int], list[int]]:
    """Row and column of the position that predicts each target id, concatenated over all queries."""
    places = [
        (row, len(query.prompt_ids) - 1 + step)
        for row, query in enumerate(queries)
        for step in range(len(query.target_ids))
    ]
    return [row for row, _ in places], [column for _, column in places]


def _split(flat: Sequence[Item], lengths: Sequence[int]) -> list[list[Item]]:
    parts, start = list[list[Item]](), 0
    for length in lengths:
        parts.append(list(flat[start : start + length]))
        start += length
    return parts
