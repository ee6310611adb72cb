"""A finished causal trace: the effects on every fact, and their averages by role of the token. Does not import torch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from harness.files import write_json

Floats = NDArray[np.float64]

Kind = Literal["state", "mlp", "attention"]
"""What is restored: the residual stream after a block, or the outputs of feed-forward or attention modules."""
KINDS: tuple[Kind, ...] = get_args(Kind)

Role = Literal["first subject", "middle subject", "last subject", "first after", "further", "last"]
"""Where a token is in its prompt, as in ROME's figure 1: in the subject, after it, or at the end of the prompt."""
ROLES: tuple[Role, ...] = get_args(Role)

JSON, ARRAYS = "trace.json", "trace.npz"
_Z = 1.96
"""Quantile of the normal distribution for intervals of 95 %, as in ROME's figures."""


def roles_of(subject: int, after: int) -> list[Role]:
    """Roles of the tokens from the subject's first one to the prompt's last one.

    The only token of a subject is its last one, and the only token after it is the last one.

    Args:
        subject, after: number of tokens in the subject and after it, at least one each.
    """
    inside: list[Role] = ["first subject", *["middle subject"] * (subject - 2)] if subject > 1 else []  # type: ignore[list-item]
    behind: list[Role] = ["first after", *["further"] * (after - 2)] if after > 1 else []  # type: ignore[list-item]
    return [*inside, "last subject", *behind, "last"]


@dataclass(frozen=True, slots=True, eq=False)
class TracedFact:
    """The effects on one fact.

    Attributes:
        record_id, prompt, subject, answer: of the record; the answer is what the dataset and the model say.
        tokens, roles: the T tokens from the subject's first one to the prompt's last one. No state before the noise
            differs from the clean one, so restoring it has no effect.
        clean: probability of the answer's first token.
        corrupted: the same with noise on the subject, mean over samples.
        effects: by kind, T × layers: how much restoring it at this token and layer raises `corrupted`.
    """

    record_id: str
    prompt: str
    subject: str
    answer: str
    tokens: tuple[str, ...]
    roles: tuple[Role, ...]
    clean: float
    corrupted: float
    effects: Mapping[Kind, Floats]


@dataclass(frozen=True, slots=True, eq=False)
class Average:
    """Mean over facts with its 95% interval (normal approximation), by layer or as a single number.

    Attributes:
        value, half_width: half the width of the interval is NaN for a single fact.
        facts: how many facts there are to average.
    """

    value: Floats
    half_width: Floats
    facts: int

    @classmethod
    def of(cls, values_N: Sequence[Floats]) -> Self:
        """Average over the first axis, which may not be empty."""
        stacked, count = np.asarray(values_N, dtype=np.float64), len(values_N)
        spread = stacked.std(axis=0, ddof=1) if count > 1 else np.full(stacked.shape[1:], np.nan)
        return cls(stacked.mean(axis=0), _Z * spread / np.sqrt(count), count)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Causal traces of several facts on one model.

    Attributes:
        facts: those that the model knows, in the order of the records.
        asked: how many facts were wanted; there are fewer if the model knows no more of the records.
        windows: by kind, the number of consecutive layers that are restored together.
        noise: standard deviation of the noise on the subject's embeddings.
    """

    facts: tuple[TracedFact, ...]
    asked: int
    windows: Mapping[Kind, int]
    noise: float

    @property
    def n_layers(self) -> int:
        """Number of layers of the model."""
        return int(self.facts[0].effects["state"].shape[1])

    def total_effect(self) -> Average:
        """Drop in the probability of the answer caused by the noise."""
        return Average.of([np.asarray(fact.clean - fact.corrupted) for fact in self.facts])

    def indirect_effect(self, kind: Kind, role: Role) -> Average | None:
        """Average indirect effect by layer: mean over a fact's tokens with this role, then over facts; None if none has one."""
        found = [
            fact.effects[kind][np.asarray(fact.roles) == role].mean(axis=0) for fact in self.facts if role in fact.roles
        ]
        return Average.of(found) if found else None

    def decisive_layer(self) -> int:
        """The layer whose feed-forward outputs have the largest average indirect effect at the last subject token.

        ROME edits here (§2.2, §3): the subject's last token is where feed-forward layers recall the fact.
        """
        found = self.indirect_effect("mlp", "last subject")
        assert found is not None, "every subject has a last token"
        return int(found.value.argmax())

    def save(self, folder: Path) -> None:
        """Write `trace.json`, with averages to read, and `trace.npz`, with the effects on every token."""
        arrays: dict[str, Any] = {
            kind: np.concatenate([fact.effects[kind] for fact in self.facts]) for kind in KINDS if self.facts
        }
        np.savez(folder / ARRAYS, **arrays)
        names = [field.name for field in fields(TracedFact) if field.name != "effects"]
        facts = [{name: getattr(fact, name) for name in names} for fact in self.facts]
        content = {"asked": self.asked, "windows": self.windows, "noise": self.noise, "facts": facts}
        write_json(folder / JSON, content | (self._averages() if self.facts else {}))

    def _averages(self) -> dict[str, object]:
        effects = {
            kind: {role: _plain(found) for role in ROLES if (found := self.indirect_effect(kind, role))}
            for kind in KINDS
        }
        total = _plain(self.total_effect())
        return {"total_effect": total, "indirect_effects": effects, "decisive_layer": self.decisive_layer()}

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a trace that `save` wrote."""
        content = json.loads((folder / JSON).read_text(encoding="utf-8"))
        with np.load(folder / ARRAYS, allow_pickle=False) as archive:
            arrays = {kind: archive[kind] for kind in KINDS if kind in archive}
        ends = np.cumsum([len(fact["tokens"]) for fact in content["facts"]])[:-1]
        split: dict[Kind, list[Floats]] = {kind: np.split(array, ends) for kind, array in arrays.items()}
        facts = [
            TracedFact(
                **{**fact, "tokens": tuple(fact["tokens"]), "roles": tuple(fact["roles"])},
                effects={kind: split[kind][number] for kind in KINDS},
            )
            for number, fact in enumerate(content["facts"])
        ]
        return cls(tuple(facts), content["asked"], content["windows"], content["noise"])

    @classmethod
    def joined(cls, parts: Iterator["Trace"]) -> Self:
        """One trace of the facts of all parts, which agree in everything else; there is at least one."""
        found = list(parts)
        facts = chain.from_iterable(part.facts for part in found)
        return cls(tuple(facts), found[0].asked, found[0].windows, found[0].noise)


def _plain(average: Average) -> dict[str, object]:
    """JSON-like, with null for NaN."""
    numbers = {"value": average.value, "half_width": average.half_width}
    plain = {name: np.where(np.isnan(found), np.asarray(None), found).tolist() for name, found in numbers.items()}
    return {**plain, "facts": average.facts}
