"""Rounds as EasyEdit's UltraEdit and MALMEN compute them, and how both cut a batch into micro-batches."""

from collections.abc import Sequence
from typing import ClassVar

import torch

from methods.common import Implementation
from methods.common.aggregation.rounds import Prepared, Rounds
from methods.common.factors import GradientFactors, factors_of
from methods.common.prediction import PredictionRow, filled_up


class EasyEditRounds(Rounds):
    """Every token of prompt and target counts, and the loss of a micro-batch is a mean over all of its labels.

    These are the targets tokenised alone, with BOS, and the padding of shorter ones (ultraedit_main.py:98,
    malmen_main.py:104, `token: mask` in all of EasyEdit's files). The last token of a row has no gradient, but its
    normalised gradient is not zero.
    """

    implementation: ClassVar[Implementation] = "faithful-easyedit"

    def prepare(self, rows: Sequence[PredictionRow]) -> list[Prepared]:
        """Split rows into micro-batches of equal size in their order, padded on the left."""
        size, padding = even_size(len(rows), self.micro_batch), self.model.tokenizer.eos_token_id
        starts = range(0, len(rows), size)
        return [self.entered(filled_up(rows[start : start + size], padding)) for start in starts]

    def factors(self, part: Prepared) -> dict[str, GradientFactors]:
        """Backpropagate the mean over all labels, to all tokens but padding."""
        share_B = torch.full((len(part.rows),), 1 / len(part.rows), device=self.model.device)  # as many labels in each
        read = [(index, column) for index, row in enumerate(part.rows) for column in range(row.padding, len(row.ids))]
        return factors_of(self.model, self.modules, part.entering, self.layer, part.rows, share_B, read)


def even_size(rows: int, most: int) -> int:
    """The largest micro-batch size, at most `most`, that divides a batch evenly; EasyEdit would drop a remainder."""
    return next(size for size in range(min(rows, most), 0, -1) if rows % size == 0)
