"""Models edited in their weights, evaluated by running the model itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from harness.api import EditedModel, State
from harness.models.batching import Padded, left_padded, right_padded
from harness.tokens import Query

if TYPE_CHECKING:
    import torch

    from harness.models.loaded import LoadedModel


class WeightEditedModel(EditedModel):
    """An `EditedModel` around a loaded model that was edited in place. Each call is one batch; the caller chooses its size.

    Args:
        model: the model with edited weights.
        on_revert: restores the weights; None for the unedited model.
        diagnostics: returned by `diagnostics`.
        state: returned by `state`.
    """

    def __init__(
        self,
        model: "LoadedModel",
        on_revert: Callable[[], None] | None = None,
        diagnostics: Mapping[str, float] | None = None,
        state: State | None = None,
    ) -> None:
        self._model = model
        self._on_revert = on_revert
        self._diagnostics = dict(diagnostics or {})
        self._state = state or {}

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

    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """Left-padded greedy decoding with a key-value cache; end-of-text does not stop the generation."""
        import torch

        from harness.models.rope import fixed_context

        if not queries:
            return []
        context = fixed_context(self._model.model)
        if context is not None and max(len(query.prompt_ids + query.target_ids) for query in queries) > context:
            return self._generated_uncached(queries)
        batch = left_padded([query.prompt_ids for query in queries], self._model.device)
        ids_BT, mask_BT, positions_BT, cache = batch.ids_BT, batch.mask_BT, batch.positions_BT, None
        chosen: list[torch.Tensor] = []
        with torch.no_grad():
            for _ in range(max(len(query.target_ids) for query in queries)):
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
                chosen.append(ids_BT)
        continuations: list[list[int]] = torch.cat(chosen, dim=1).tolist()
        return [ids[: len(query.target_ids)] for ids, query in zip(continuations, queries, strict=True)]

    def _generated_uncached(self, queries: Sequence[Query]) -> list[list[int]]:
        """Generate as above, reading each row anew for each id: its rotary frequencies may change as it becomes longer."""
        import torch

        rows = [list(query.prompt_ids) for query in queries]
        with torch.no_grad():
            for _ in range(max(len(query.target_ids) for query in queries)):
                batch = left_padded(rows, self._model.device)
                hidden_BTD = self._hidden(batch)
                for row, id_ in zip(rows, self._model.logits(hidden_BTD[:, -1]).argmax(-1).tolist(), strict=True):
                    row.append(id_)
        starts = (len(query.prompt_ids) for query in queries)
        return [
            row[start : start + len(query.target_ids)] for row, start, query in zip(rows, starts, queries, strict=True)
        ]

    def diagnostics(self) -> Mapping[str, float]:
        """The diagnostics given at construction."""
        return dict(self._diagnostics)

    def state(self) -> State:
        """The state given at construction."""
        return self._state

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


def _target_positions(queries: Sequence[Query]) -> tuple[list[int], list[int]]:
    """Row and column of the position that predicts each target id, concatenated over all queries."""
    places = [
        (row, len(query.prompt_ids) - 1 + step)
        for row, query in enumerate(queries)
        for step in range(len(query.target_ids))
    ]
    return [row for row, _ in places], [column for _, column in places]


def _split(flat: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    parts, start = [], 0
    for length in lengths:
        parts.append(list(flat[start : start + length]))
        start += length
    return parts
