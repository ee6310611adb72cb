"""A key-value cache whose rows can be taken back and written anew at their ends without moving anything."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.models.batching import PADDING_ID
from methods.onceedit.forward import attention_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UNSEEN = -1


class Slots:
    """What a model has read, row by row, as keys and values in append-only slots.

    New ids always take new slots at the end. Ids that are taken back keep theirs, and nobody sees them any more. A slot
    knows the position of its id in its row and nothing else, and positions alone decide who sees whom; where in the
    cache an id came to lie does not matter, and a buffer of fixed length could stand in for the growing one.

    Attributes:
        n_fed: ids fed so far, over all rows.
    """

    def __init__(self, model: "PreTrainedModel", n_rows: int) -> None:
        from transformers import DynamicCache

        self._model = model
        self._cache = DynamicCache()  # made without the configuration, it drops no slot behind a sliding window
        self._ids: list[list[int]] = [[] for _ in range(n_rows)]
        self._positions_BS = torch.empty(n_rows, 0, dtype=torch.long, device=model.device)
        self._last_BD = torch.empty(n_rows, model.config.hidden_size, dtype=model.dtype, device=model.device)
        self.n_fed = 0

    @torch.no_grad()
    def hold(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Make each row hold exactly these ids, in one forward pass of what is new.

        What a row has in common with what it held before stays. A row that became a beginning of itself feeds its last
        id again, for the sake of its hidden state; one that did not change feeds nothing.

        Args:
            rows: ids of each row, at least one.

        Returns:
            The final hidden state of the last id of each row, B × D.
        """
        kept = [_kept(old, new) for old, new in zip(self._ids, rows, strict=True)]
        width = max(len(row) - n for row, n in zip(rows, kept, strict=True))
        if width:
            self._feed(rows, kept, width)
        self._ids = [list(row) for row in rows]
        return self._last_BD

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, in this order."""
        index_B = torch.tensor(rows, device=self._positions_BS.device)
        self._cache.batch_select_indices(index_B)
        self._ids = [self._ids[row] for row in rows]
        self._positions_BS, self._last_BD = self._positions_BS[index_B], self._last_BD[index_B]

    def _feed(self, rows: Sequence[Sequence[int]], kept: Sequence[int], width: int) -> None:
        """Append a chunk of `width` slots: what is new in each row, flush right, so that the last column is its end."""
        table = [
            [n, len(row), *[PADDING_ID] * (width - len(row) + n), *row[n:]] for row, n in zip(rows, kept, strict=True)
        ]
        chunk = torch.tensor(table).to(self._positions_BS.device)
        kept_B, length_B, ids_BC = chunk[:, 0], chunk[:, 1], chunk[:, 2:]
        positions_BC = length_B[:, None] + torch.arange(-width, 0, device=chunk.device)
        positions_BC = positions_BC.masked_fill(positions_BC < kept_B[:, None], _UNSEEN)
        remaining_BS = self._positions_BS.masked_fill(self._positions_BS >= kept_B[:, None], _UNSEEN)
        self._positions_BS = positions_BS = torch.cat([remaining_BS, positions_BC], dim=1)
        # a row's positions differ from slot to slot: an id sees those up to its own, and all of them are before it
        is_visible_BCS = (positions_BS[:, None] != _UNSEEN) & (positions_BS[:, None] <= positions_BC[:, :, None])
        hidden_BCD = self._model.base_model(
            input_ids=ids_BC,
            attention_mask=attention_mask(self._model, is_visible_BCS, positions_BC, positions_BS),
            position_ids=positions_BC.clamp_min(0),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        self._last_BD = torch.where((length_B > kept_B)[:, None], hidden_BCD[:, -1], self._last_BD)
        self.n_fed += sum(map(len, rows)) - sum(kept)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many ids two sequences have in common from their start."""
    for n, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return n
    return min(len(left), len(right))


def _kept(old: Sequence[int], new: Sequence[int]) -> int:
    """How many ids of a row need not be fed again."""
    shared = common_prefix(old, new)
    return shared - 1 if shared == len(new) < len(old) else shared
