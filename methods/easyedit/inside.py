"""What an adapter is inside the worker: EasyEdit's calls on our model, one request or question after the other."""

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.records import EditRequest
from harness.tokens import Query

if TYPE_CHECKING:
    from torch import Tensor

    from harness.models.loaded import LoadedModel


@dataclass(frozen=True, slots=True)
class Bench:
    """What an act of editing is made with.

    Attributes:
        loaded: the worker's own model, with the weights of the one that is to be edited, and its tokenizer, set up as
            EasyEdit's editor does for most methods: it pads on the left, with the end-of-text token.
        options: EasyEdit's hyper-parameters by its own names, as the adapter's `options` gave them.
        workarounds: names of those that are on.
        artifacts: finished folders, by role.
        checkout: the folder that holds `easyeditor`.
        seed: of the cell; `seed_all` has been called with it just before.
    """

    loaded: "LoadedModel"
    options: Mapping[str, Any]
    workarounds: frozenset[str]
    artifacts: Mapping[str, Path]
    checkout: Path
    seed: int


@dataclass(frozen=True, slots=True)
class Applied:
    """What an act of editing says of itself.

    Attributes:
        touched: names of the parameters that the method may change, whether it has or not.
        diagnostics: for those of the cell.
    """

    touched: tuple[str, ...] = ()
    diagnostics: Mapping[str, float] = field(default_factory=dict)


class Inside(ABC):
    """A method of EasyEdit in the worker. One object makes one act of editing; what its constructor does is not timed.

    A method of weights leaves the edited weights in `bench.loaded.model`; the worker compares them with those it was
    given and hands over what differs.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    @abstractmethod
    def apply(self, requests: Sequence[EditRequest]) -> Applied:
        """Apply all requests; this is what is timed."""


class Wrapped(Inside):
    """A method whose edited model is a wrapper around the model; it stays in the worker and is asked there, row by row.

    `apply` sets `wrapper`. What a method has to set for each question goes into `before`.
    """

    wrapper: Any

    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """As `harness.api.EditedModel.teacher_forced`; the wrapper sees the whole text (evaluate_utils.py:297)."""
        answers = []
        for query in queries:
            self.before(query, is_forced=True)
            logits_TV = self.logits(query.prompt_ids + query.target_ids)
            answers.append(logits_TV[len(query.prompt_ids) - 1 : -1].argmax(-1).tolist())
        return answers

    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """As `harness.api.EditedModel.generate`: the whole text is read again for each id (evaluate_utils.py:259)."""
        answers = []
        for query in queries:
            self.before(query, is_forced=False)
            ids = query.prompt_ids
            for _ in query.target_ids:
                ids = (*ids, int(self.logits(ids)[-1].argmax()))
            answers.append(list(ids[len(query.prompt_ids) :]))
        return answers

    def logits(self, ids: Sequence[int]) -> "Tensor":
        """What the wrapper says behind each of T ids, T × V."""
        import torch

        ids_1T = torch.tensor([list(ids)], device=self.bench.loaded.device)
        with torch.no_grad():
            output = self.wrapper(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), use_cache=False)
        logits_TV: Tensor = output.logits[0]
        return logits_TV

    def scope(self, queries: Sequence[Query]) -> list[float] | None:
        """As `harness.api.EditedModel.scope`."""
        return None

    def before(self, query: Query, is_forced: bool) -> None:
        """Set on the wrapper whatever it must know of the next question; `is_forced` in teacher forcing."""

    @abstractmethod
    def revert(self) -> None:
        """Take the wrapper off the model, whose parameters must then be those that were given, by the same names."""


def seed_all(seed: int) -> None:
    """Start every generator of this process that EasyEdit draws from."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def as_dicts(requests: Sequence[EditRequest]) -> list[dict[str, str]]:
    """Requests as EasyEdit has them; space around a text is no part of it, as for `joint_query`."""
    return [
        {
            "prompt": request.prompt.rstrip(),
            "subject": request.subject.strip(),
            "target_new": request.target_new.strip(),
            "ground_truth": request.ground_truth,
        }
        for request in requests
    ]
