"""GRACE's codebook: keys with radii and labels, and the value returned within each radius."""

from dataclasses import dataclass
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from harness.api import State
from harness.models.routed import last_of
from harness.tokens import Query
from methods.grace.editor import GraceHparams

Label = tuple[float, ...]
"""The target of an edit: its ids, or the mean of its ids. Two edits with equal labels may share a key."""

SPLIT_MARGIN = 1e-5
"""Margin subtracted from the older key's radius, half the distance, when a split separates two labels (GRACE's code)."""


@dataclass(frozen=True, slots=True)
class PendingValue:
    """A value still to be learned.

    Attributes:
        row: its row in the codebook.
        request: index of the request that it is learned for.
        is_fresh: training starts from a new value; otherwise from the row's current value.
    """

    row: int
    request: int
    is_fresh: bool


class Codebook:
    """Codebook with rows in insertion order. A `harness.models.routed.Memory`.

    Args:
        hparams: hyper-parameters of GRACE.
        keys_NK: all keys that may be inserted; at least fp32.
        fresh_ND: initial value for each of these keys, in the same precision.
        noise: relative rounding difference between the keys of one prompt computed in different batches.
        kept: `state()` of the codebook to continue from; None for an empty one.
    """

    def __init__(
        self, hparams: GraceHparams, keys_NK: Tensor, fresh_ND: Tensor, noise: float, kept: State | None = None
    ) -> None:
        self._hparams = hparams
        self._offered_NK, self._fresh_ND, self._noise = keys_NK, fresh_ND, noise
        self._keys_NK, self._values_ND = torch.zeros_like(keys_NK), torch.zeros_like(fresh_ND)
        self._radii_N = keys_NK.new_full((len(keys_NK),), -torch.inf)
        self._is_failed_N = torch.zeros_like(self._radii_N, dtype=torch.bool)
        self._labels: list[Label] = []
        self.splits = 0
        if kept:
            self._keys_NK = torch.cat([kept["keys"], self._keys_NK])
            self._values_ND = torch.cat([kept["values"], self._values_ND])
            self._radii_N = torch.cat([kept["radii"], self._radii_N])
            self._is_failed_N = torch.cat([kept["is_failed"], self._is_failed_N])
            ids = iter(kept["labels"].tolist())
            self._labels = [tuple(islice(ids, length)) for length in kept["label_lengths"].tolist()]
            self.splits = int(kept["splits"])

    def state(self) -> dict[str, Tensor]:
        """All rows as tensors; labels are concatenated, with their lengths in `label_lengths`. Views, not copies."""
        return {
            "keys": self.keys_NK,
            "values": self.values_ND,
            "radii": self._radii_N[: len(self)],
            "is_failed": self._is_failed_N[: len(self)],
            "labels": torch.tensor([part for label in self._labels for part in label], dtype=torch.float64),
            "label_lengths": torch.tensor([len(label) for label in self._labels], dtype=torch.long),
            "splits": torch.tensor(self.splits),
        }

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._labels)

    @property
    def radii(self) -> list[float]:
        """ε of each row."""
        radii: list[float] = self._radii_N[: len(self)].tolist()
        return radii

    @property
    def keys_NK(self) -> Tensor:
        """The key of each row."""
        return self._keys_NK[: len(self)]

    @property
    def values_ND(self) -> Tensor:
        """The value of each row."""
        return self._values_ND[: len(self)]

    def insert(self, request: int, label: Label) -> PendingValue | None:
        """Insert a request: add a row, extend one, or split two (GRACE, algorithm 1).

        Returns:
            The value to be learned; None if there is none: for a non-finite key, which is not inserted, and for a row
            that its own key does not reach.
        """
        key_K = self._offered_NK[request]
        if not key_K.isfinite().all():
            return None
        if not len(self):
            return self._add(request, label)
        distance_1, row_1 = self._nearest(key_K[None])
        distance, row = distance_1.item(), int(row_1.item())
        if distance > self._hparams.radius + self._radii_N[row].item():
            return self._add(request, label)
        if label == self._label(row):
            if distance > self._radii_N[row].item():
                self._expand(row, key_K, distance)
            return PendingValue(row, request, is_fresh=False)
        if self._hparams.implementation == "corrected" and distance <= self._slack(key_K):
            self._labels[row] = label
            return PendingValue(row, request, is_fresh=True)
        self.splits += 1
        self._radii_N[row] = distance / 2 - SPLIT_MARGIN
        value = self._add(request, label)
        self._radii_N[value.row] = distance / 2
        return value if distance > 0 else None

    def learn(self, pending: list[PendingValue], values_BD: Tensor, is_failed_B: Tensor) -> None:
        """Store the learned values. A row whose latest value failed never answers."""
        rows_B = torch.tensor([value.row for value in pending], device=values_BD.device)
        self._values_ND[rows_B] = values_BD
        self._is_failed_N[rows_B] = is_failed_B

    def start(self, pending: list[PendingValue]) -> Tensor:
        """Initial values of the pending ones, B × D."""
        return torch.stack(
            [self._fresh_ND[value.request] if value.is_fresh else self._values_ND[value.row] for value in pending]
        )

    def route(self, inputs_BTK: Tensor, outputs_BTD: Tensor, read_BT: Tensor) -> Tensor:
        """Codebook row that answers each prompt, chosen by the prompt's last token; -1 for none."""
        queries_BK = inputs_BTK[torch.arange(len(read_BT), device=read_BT.device), last_of(read_BT)]
        if not len(self):
            return torch.full_like(last_of(read_BT), -1)
        distances_B, rows_B = self._nearest(queries_BK.to(self._keys_NK.dtype))
        is_reached_B = (distances_B <= self._radii_N[rows_B]) & ~self._is_failed_N[rows_B]
        return torch.where(is_reached_B, rows_B, -1)

    def answer(self, inputs_BTK: Tensor, outputs_BTD: Tensor, read_BT: Tensor, route: Tensor) -> Tensor:
        """Put the values at their positions in the prompts; decoding steps need none, since their effect is in the cache."""
        values_BD = self._values_ND[route.clamp(min=0)]
        places_BT = places(read_BT, self._hparams.replace) & (route >= 0)[:, None]
        return placed(values_BD, outputs_BTD, places_BT)

    def scope(self, route: Tensor) -> Tensor:
        """1 where a row answers, 0 elsewhere."""
        return (route >= 0).double()

    def _add(self, request: int, label: Label) -> PendingValue:
        row = len(self)
        self._labels.append(label)
        self._keys_NK[row] = self._offered_NK[request]
        self._values_ND[row] = self._fresh_ND[request]
        self._radii_N[row] = self._hparams.radius
        return PendingValue(row, request, is_fresh=True)

    def _expand(self, row: int, key_K: Tensor, distance: float) -> None:
        if self._hparams.expand == "moving_average":
            self._keys_NK[row] = (self._keys_NK[row] + key_K) / 2
        self._radii_N[row] = distance + self._slack(key_K)

    def _label(self, row: int) -> Label:
        """The label compared for a row.

        EasyEdit (since March 2024) prepends new labels but appends new keys, so it compares the wrong row's label.
        """
        return self._labels[row if self._hparams.implementation == "corrected" else len(self) - 1 - row]

    def _slack(self, key_K: Tensor) -> float:
        """Distance between two computations of the same key that rounding alone can explain."""
        if self._hparams.implementation == "faithful-easyedit":
            return 0.0
        return self._noise * (key_K.norm().item() if self._hparams.distance == "euclidean" else 1.0)

    def _nearest(self, queries_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Distance to the nearest key, and its row."""
        if self._hparams.distance == "cosine":
            unit_BK, unit_NK = (torch.nn.functional.normalize(x, dim=-1) for x in (queries_BK, self.keys_NK))
            distances_BN = 1 - unit_BK @ unit_NK.T
        else:
            # cdist's default matrix-product formulation would give a key a non-zero distance to itself
            distances_BN = torch.cdist(queries_BK, self.keys_NK, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances_BN.min(dim=1)
        return nearest.values, nearest.indices


def places(prompt_BT: Tensor, replace: Literal["last", "prompt"]) -> Tensor:
    """Boolean mask B × T of the replaced positions: the last token of each prompt, or all tokens before it."""
    columns_T = torch.arange(prompt_BT.shape[1], device=prompt_BT.device)
    last_B1 = last_of(prompt_BT)[:, None]
    return prompt_BT & (columns_T == last_B1 if replace == "last" else columns_T < last_B1)


def placed(values_BD: Tensor, outputs_BTD: Tensor, places_BT: Tensor) -> Tensor:
    """`outputs_BTD` with each row's value at its masked positions, in the outputs' precision."""
    return torch.where(places_BT[..., None], values_BD[:, None].to(outputs_BTD.dtype), outputs_BTD)


def label_of(query: Query, implementation: str) -> Label:
    """The target's ids; for EasyEdit (and the authors' code) the mean over all labels, with -100 for each prompt id.

    With these means, equal targets get different labels after prompts of different lengths, and different targets may collide.
    """
    if implementation == "corrected":
        return query.target_ids
    labels = torch.tensor([-100] * len(query.prompt_ids) + list(query.target_ids))
    return (float(labels.float().mean()),)
