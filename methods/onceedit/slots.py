"""A key-value cache whose rows can be truncated and extended independently, without moving any entries."""

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
    """The ids that a model has read, row by row, with their keys and values in append-only slots.

    New ids always take new slots at the end. Removed ids keep their slots but are masked. Each slot stores only the position
    of its id in the row, and the attention mask depends only on positions, not on the order of slots in the cache. A
    fixed-length buffer could therefore replace the growing one.

    Args:
        model: the model that reads.
        n_rows: number of rows.
        crops: drop the last slots before feeding once no row uses them, as when ids are often taken back.

    Attributes:
        n_fed: ids fed so far, over all rows.
        chunk_BCD: final hidden states of the ids fed last; the last column is every row's end.
    """

    def __init__(self, model: "PreTrainedModel", n_rows: int, *, crops: bool = False) -> None:
        from transformers import DynamicCache

        self._model = model
        self._cache = DynamicCache()  # without a configuration, it does not evict slots outside a sliding window
        self._ids: list[list[int]] = [[] for _ in range(n_rows)]
        self._positions_BS = torch.empty(n_rows, 0, dtype=torch.long, device=model.device)
        self._last_BD = torch.empty(
            n_rows, model.get_output_embeddings().weight.shape[1], dtype=model.dtype, device=model.device
        )
        self._columns: list[list[int]] | None = [[] for _ in range(n_rows)] if crops else None
        self.chunk_BCD = self._last_BD[:, None, :0]
        self.n_fed = 0

    @torch.no_grad()
    def hold(self, rows: Sequence[Sequence[int]], again: Sequence[int] | None = None) -> Tensor:
        """Make each row hold exactly these ids, feeding only the new ones in a single forward pass.

        The prefix that a row shares with its previous ids is kept. A row that was truncated feeds its last id again, to
        obtain its hidden state; an unchanged row feeds nothing.

        Args:
            rows: ids of each row, at least one.
            again: number of ids at the end of each row to feed in any case, because their hidden states are needed.

        Returns:
            The final hidden state of the last id of each row, B × D.
        """
        kept = [_kept(old, new) for old, new in zip(self._ids, rows, strict=True)]
        if again is not None:
            kept = [min(n, len(row) - last) for n, row, last in zip(kept, rows, again, strict=True)]
        width = max(len(row) - n for row, n in zip(rows, kept, strict=True))
        if width:
            self._feed(rows, kept, width)
        self._ids = [list(row) for row in rows]
        return self._last_BD

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        index_B = torch.tensor(rows, device=self._positions_BS.device)
        self._cache.batch_select_indices(index_B)
        self._ids = [self._ids[row] for row in rows]
        if self._columns is not None:
            self._columns = [self._columns[row] for row in rows]
        self._positions_BS, self._last_BD = self._positions_BS[index_B], self._last_BD[index_B]

    def _feed(self, rows: Sequence[Sequence[int]], kept: Sequence[int], width: int) -> None:
        """Append `width` slots with each row's new ids, right-aligned, so that the last column is every row's end."""
        if self._columns is not None:
            self._crop(self._columns, rows, kept, width)
        table = [
            [n, len(row), *[PADDING_ID] * (width - len(row) + n), *row[n:]] for row, n in zip(rows, kept, strict=True)
        ]
        chunk = torch.tensor(table).to(self._positions_BS.device)
        kept_B, length_B, ids_BC = chunk[:, 0], chunk[:, 1], chunk[:, 2:]
        positions_BC = length_B[:, None] + torch.arange(-width, 0, device=chunk.device)
        positions_BC = positions_BC.masked_fill(positions_BC < kept_B[:, None], _UNSEEN)
        remaining_BS = self._positions_BS.masked_fill(self._positions_BS >= kept_B[:, None], _UNSEEN)
        self._positions_BS = positions_BS = torch.cat([remaining_BS, positions_BC], dim=1)
        # positions are unique within a row: an id sees its own and all smaller ones, whose slots already exist
        is_visible_BCS = (positions_BS[:, None] != _UNSEEN) & (positions_BS[:, None] <= positions_BC[:, :, None])
        hidden_BCD = self._model.base_model(
            input_ids=ids_BC,
            attention_mask=attention_mask(self._model, is_visible_BCS, positions_BC, positions_BS),
            position_ids=positions_BC.clamp_min(0),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        self.chunk_BCD = hidden_BCD
        self._last_BD = torch.where((length_B > kept_B)[:, None], hidden_BCD[:, -1], self._last_BD)
        self.n_fed += sum(map(len, rows)) - sum(kept)

    def _crop(self, columns: list[list[int]], rows: Sequence[Sequence[int]], kept: Sequence[int], width: int) -> None:
        """Drop the last slots that no row uses, and note the slots that the rows' new ids will take."""
        used = 1 + max((own[n - 1] for own, n in zip(columns, kept, strict=True) if n), default=-1)
        if (unused := self._positions_BS.shape[1] - used) > 0:
            self._cache.crop(-unused)
            self._positions_BS = self._positions_BS[:, :used]
        for own, row, n in zip(columns, rows, kept, strict=True):
            own[n:] = range(used + width - len(row) + n, used + width)


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Length of the longest common prefix of two sequences."""
    for n, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return n
    return min(len(left), len(right))


def _kept(old: Sequence[int], new: Sequence[int]) -> int:
    """Number of leading ids of a row that need not be fed again."""
    shared = common_prefix(old, new)
    return shared - 1 if shared == len(new) < len(old) else shared
