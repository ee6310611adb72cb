"""Prefix trees: many texts in one forward pass, with shared prefixes fed only once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from harness.models.batching import PADDING_ID
from harness.models.submodels import at_places
from methods.onceedit.forward import attention_mask
from methods.onceedit.slots import common_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Tree:
    """Prefix tree of id sequences: one node per distinct prefix, in depth-first order.

    In this order the descendants of a node follow it contiguously, so the last one identifies them all: node j is an ancestor
    of node i, or i itself, if and only if j ≤ i ≤ last[j].

    Attributes:
        ids: id of each node.
        depths: depth of each node, i.e. the position of its id in every sequence that contains it.
        last: last descendant of each node, or the node itself if it has none.
        ends: node at which each sequence ends.
    """

    ids: list[int]
    depths: list[int]
    last: list[int]
    ends: list[int]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Tree":
        """Build the tree of non-empty sequences."""
        tree = cls([], [], [], [-1] * len(sequences))
        path: list[int] = []  # nodes of the previous sequence
        before: Sequence[int] = ()
        for index in sorted(range(len(sequences)), key=lambda index: list(sequences[index])):
            sequence = sequences[index]
            del path[common_prefix(before, sequence) :]
            for token_id in sequence[len(path) :]:
                tree.ids.append(token_id)
                tree.depths.append(len(path))
                tree.last.append(len(tree.last))
                path.append(len(tree.last) - 1)
            for node in path:
                tree.last[node] = len(tree.last) - 1
            tree.ends[index] = path[-1]
            before = sequence
        return tree


def hidden_at_ends(model: "PreTrainedModel", trees: Sequence[Tree]) -> Tensor:
    """Final hidden state at the end of every sequence, N × D, tree by tree, as if each sequence were fed on its own.

    Args:
        model: a causal language model.
        trees: one tree per row of the batch.
    """
    rows = [torch.tensor([tree.ids, tree.depths, tree.last]) for tree in trees]
    table_BT3 = pad_sequence([row.T for row in rows], batch_first=True, padding_value=-1).to(model.device)
    ids_BT, depths_BT, last_BT = table_BT3.unbind(dim=-1)
    node_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
    is_visible_BTT = (node_T <= node_T[:, None]) & (node_T[:, None] <= last_BT[:, None, :])
    hidden_BTD: Tensor = model.base_model(
        input_ids=ids_BT.masked_fill(ids_BT < 0, PADDING_ID),
        attention_mask=attention_mask(model, is_visible_BTT, depths_BT, depths_BT),
        position_ids=depths_BT.clamp_min(0),
        use_cache=False,
    ).last_hidden_state
    ends = [(row, node) for row, tree in enumerate(trees) for node in tree.ends]
    return at_places(hidden_BTD, ends)
