"""Rotary embeddings with frequencies that depend on the length of the text (dynamic NTK, LongRoPE), per row of a batch.

transformers chooses the frequencies of a batch by its longest row, and dynamic NTK even keeps those of an earlier batch.
A text's hidden states would then depend on what else is asked. Here each row has the frequencies of its own length: those
of the original context, unless the row itself is longer.
"""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class RowwiseRotary(nn.Module):
    """Rotary embeddings that give each row of a batch the values it would get alone, on a freshly loaded model.

    A row longer than the original context must be a whole text, from its first id to its last. Keys that were cached when
    the text was shorter have other frequencies, and several texts in one row have no common length.

    Args:
        rotary: the model's own module. It only runs rows within the original context, so it never changes.
        context: length of the original context in ids; longer rows have other frequencies.
    """

    def __init__(self, rotary: nn.Module, context: int) -> None:
        super().__init__()
        self.rotary, self.context = rotary, context

    def forward(self, x: Tensor, position_ids: Tensor, *layer_type: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Cosines and sines, B × T × head size.

        Args:
            x: its dtype and device are those of the result.
            position_ids: B × T (or 1 × T); 0 at padded positions.
            layer_type, named: passed on.

        Raises:
            UserError: for part of a text that is longer than the original context.
        """
        lengths_B = position_ids.amax(dim=-1) + 1
        if int(lengths_B.max()) <= self.context:
            cos_BTH, sin_BTH = self.rotary(x, position_ids, *layer_type, **named)
            return cos_BTH, sin_BTH
        # every position but the first occurs once in a whole text, padded or not
        is_whole_B = (position_ids > 0).sum(dim=-1) == lengths_B - 1
        if not bool((is_whole_B | (lengths_B <= self.context)).all()):
            raise UserError(
                f"a text of {int(lengths_B[~is_whole_B].max())} ids exceeds the {self.context} ids up to which this "
                "model's rotary frequencies are fixed, so it cannot be read in parts",
                fix="leave the record out, or choose a model with a longer original context",
            )
        rows, parts = [], []
        lengths_B = lengths_B.clamp_min(self.context)  # all shorter rows have the same frequencies
        for length in sorted(set(lengths_B.tolist())):
            rows.append((lengths_B == length).nonzero()[:, 0])
            rotary = self.rotary if length == self.context else copy.deepcopy(self.rotary)
            parts.append(torch.stack(rotary(x, position_ids[rows[-1]], *layer_type, **named)))
        both_2BTH = torch.cat(parts, dim=1)[:, torch.cat(rows).argsort()]
        return both_2BTH[0], both_2BTH[1]


def make_rowwise(model: "PreTrainedModel") -> None:
    """Replace rotary modules whose frequencies depend on the batch; no effect on all other models."""
    for path, module in list(model.named_modules()):
        context = _context(module)
        if context is not None:
            owner, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(owner), leaf, RowwiseRotary(module, context))


def fixed_context(model: "PreTrainedModel") -> int | None:
    """Length of the longest text with fixed rotary frequencies, in ids; None if they are fixed for every length."""
    return min((module.context for module in model.modules() if isinstance(module, RowwiseRotary)), default=None)


def _context(module: Any) -> int | None:
    """Length of the original context of a rotary module whose frequencies depend on length; None for any other module."""
    kinds = getattr(module, "rope_type", None)
    if kinds is None:
        return None
    settings = module.config.rope_parameters
    by_layer = kinds.items() if isinstance(kinds, dict) else [(None, kinds)]
    contexts = []
    for layer_type, kind in by_layer:
        if kind == "longrope":
            chosen = settings if layer_type is None else settings[layer_type]
            contexts.append(int(chosen["original_max_position_embeddings"]))
        elif "dynamic" in kind:
            contexts.append(int(module.original_max_seq_len))
    return min(contexts, default=None)
