"""The stored edits and their keys."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from harness.api import State
from harness.errors import UserError
from harness.records import EditRequest
from harness.tokens import token_ids
from methods.serac.networks import Networks, squared_distances

_ENTRIES = 1 << 22
"""Differences of keys that are computed at a time: with thousands of edits, a batch of questions has a hundred times as many."""


def stated(prompt: str, target: str) -> str:
    """An edit as the counterfactual model reads it, before a question."""
    return f"{prompt.strip()} {target.strip()}\n"


@dataclass(frozen=True, eq=False)
class EditMemory:
    """E stored edits.

    Attributes:
        statements: text of each edit.
        keys_EW: embedding of each edit's prompt.
    """

    statements: tuple[str, ...]
    keys_EW: Tensor

    @classmethod
    def of(cls, networks: Networks, state: State, requests: Sequence[EditRequest], most_tokens: int) -> Self:
        """The edits of `state` and further ones.

        Raises:
            UserError: if an edit has too many tokens.
        """
        texts = [stated(request.prompt, request.target_new) for request in requests]
        rows = token_ids(networks.counterfactual.tokenizer, texts, add_special_tokens=False)
        for request, row in zip(requests, rows, strict=True):
            if len(row) > most_tokens:
                raise UserError(
                    f"record {request.record_id}: serac's counterfactual model would read {len(row)} tokens of it, more than "
                    f"{most_tokens}",
                    fix=f"edit_tokens: {len(row)}",
                )
        earlier = json.loads(state["statements"].cpu().numpy().tobytes()) if state else []
        keys = [state["keys"]] if state else []
        if requests:
            keys.append(networks.keys([request.prompt.strip() for request in requests]))
        keys_EW = torch.cat(keys) if keys else torch.empty(0, networks.classifier.head.out_features)
        return cls((*earlier, *texts), keys_EW)

    def state(self) -> dict[str, Tensor]:
        """All edits as tensors, from which `of` continues."""
        content = bytearray(json.dumps(self.statements, ensure_ascii=False).encode())
        return {"statements": torch.frombuffer(content, dtype=torch.uint8), "keys": self.keys_EW}

    def nearest(self, keys_QW: Tensor) -> tuple[list[float], list[int]]:
        """Probability that each of Q questions is in the scope of its nearest edit, and that edit; 0 without edits."""
        if not self.statements:
            return [0.0] * len(keys_QW), [0] * len(keys_QW)
        probabilities: list[float] = []
        places: list[int] = []
        for part_QW in torch.split(keys_QW, max(1, _ENTRIES // self.keys_EW.numel())):
            least_Q, places_Q = squared_distances(part_QW, self.keys_EW).min(dim=-1)
            probabilities += least_Q.neg().exp().tolist()
            places += places_Q.tolist()
        return probabilities, places
