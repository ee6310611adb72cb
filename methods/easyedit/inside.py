"""Base classes of the worker's half of an adapter: EasyEdit's calls on our model, one request or query at a time."""

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
    """Inputs of an edit run.

    Attributes:
        loaded: the worker's own model, with the weights of the model to be edited, and its tokenizer, set up as EasyEdit's
            editor does for most methods: padding on the left, with the end-of-text token.
        options: EasyEdit's hyper-parameters under its own names, as returned by the adapter's `options`.
        workarounds: names of the active workarounds.
        artifacts: folders of finished artifacts, by role.
        checkout: the folder that contains `easyeditor`.
        seed: seed of the cell; `seed_all` has just been called with it.
    """

    loaded: "LoadedModel"
    options: Mapping[str, Any]
    workarounds: frozenset[str]
    artifacts: Mapping[str, Path]
    checkout: Path
    seed: int


@dataclass(frozen=True, slots=True)
class Applied:
    """Result of an edit run.

    Attributes:
        touched: names of the parameters that the method may change, whether or not it did.
        diagnostics: added to those of the cell.
    """

    touched: tuple[str, ...] = ()
    diagnostics: Mapping[str, float] = field(default_factory=dict)


class Inside(ABC):
    """One edit run of an EasyEdit method in the worker. The constructor is not timed.

    A weight-editing method leaves the edited weights in `bench.loaded.model`; the worker compares them with the weights it
    was given and hands over the difference.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    @abstractmethod
    def apply(self, requests: Sequence[EditRequest]) -> Applied:
        """Apply all requests; only this is timed."""


class Wrapped(Inside):
    """A method whose edited model is a wrapper around the model; it stays in the worker and is queried there, row by row.

    `apply` sets `wrapper`. Override `before` to prepare the wrapper for each query.
    """

    wrapper: Any

    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """See `harness.api.EditedModel.teacher_forced`; the wrapper sees the whole text (evaluate_utils.py:297)."""
        answers = []
        for query in queries:
            self.before(query, is_forced=True)
            logits_TV = self.logits(query.prompt_ids + query.target_ids)
            answers.append(logits_TV[len(query.prompt_ids) - 1 : -1].argmax(-1).tolist())
        return answers

    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """See `harness.api.EditedModel.generate`; the whole text is re-read for each new id (evaluate_utils.py:259)."""
        answers = []
        for query in queries:
            self.before(query, is_forced=False)
            ids = query.prompt_ids
            for _ in query.target_ids:
                ids = (*ids, int(self.logits(ids)[-1].argmax()))
            answers.append(list(ids[len(query.prompt_ids) :]))
        return answers

    def logits(self, ids: Sequence[int]) -> "Tensor":
        """Next-token logits of the wrapper at each of T ids, T × V."""
        import torch

        ids_1T = torch.tensor([list(ids)], device=self.bench.loaded.device)
        with torch.no_grad():
            output = self.wrapper(input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), use_cache=False)
        logits_TV: Tensor = output.logits[0]
        return logits_TV

    def scope(self, queries: Sequence[Query]) -> list[float] | None:
        """See `harness.api.EditedModel.scope`."""
        return None

    def before(self, query: Query, is_forced: bool) -> None:
        """Prepare the wrapper for the next query; `is_forced` is True in teacher forcing."""

    @abstractmethod
    def revert(self) -> None:
        """Remove the wrapper from the model; its parameters must then have their original names and values."""


def seed_all(seed: int) -> None:
    """Seed every random generator of this process that EasyEdit uses."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def as_dicts(requests: Sequence[EditRequest]) -> list[dict[str, str]]:
    """Convert requests to EasyEdit's dictionaries, stripping whitespace as `joint_query` does."""
    return [
        {
            "prompt": request.prompt.rstrip(),
            "subject": request.subject.strip(),
            "target_new": request.target_new.strip(),
            "ground_truth": request.ground_truth,
        }
        for request in requests
    ]
