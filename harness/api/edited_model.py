"""An edited model, which is all that evaluation sees of an edit."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from harness.errors import UserError
from harness.tokens import Query

if TYPE_CHECKING:
    from torch import Tensor

State: TypeAlias = Mapping[str, "Tensor"]
"""State that an edit keeps in addition to the weights, under names chosen by the method; saved as safetensors."""

Ends = Callable[[int, int], bool]
"""Called with the number of a row and its next id, in order; returns whether the row ends with this id."""


class TokenScore(NamedTuple):
    """A model's log-probability of one id of a text.

    Attributes:
        logprob: natural logarithm of the id's probability.
        best: the most probable id at its position.
        best_logprob: natural logarithm of its probability.
    """

    logprob: float
    best: int
    best_logprob: float


class EditedModel(ABC):
    """A model after editing, with changed weights, a routed memory or an ensemble.

    All calls are batched. The harness always calls `revert`, even after an exception.
    """

    @abstractmethod
    def teacher_forced(self, queries: Sequence[Query]) -> list[list[int]]:
        """Return the arg-max id at each target position under teacher forcing; one list per query."""

    @abstractmethod
    def generate(self, queries: Sequence[Query]) -> list[list[int]]:
        """Continue each prompt greedily by exactly as many ids as its target has."""

    def generate_until(self, queries: Sequence[Query], ends: Ends) -> list[list[int]]:
        """Continue each prompt greedily until a row ends, by at most as many ids as its target has; the last id included.

        By default, generates everything first. A model that can call `ends` while it decodes stops earlier and can be
        followed as it writes. Ids do not depend on when other rows end.
        """
        made = self.generate(queries)
        return [ids[: _length(row, ids, ends)] for row, ids in enumerate(made)]

    def score(self, queries: Sequence[Query], *, reads_targets: bool = False) -> list[list[TokenScore]]:
        """Return the log-probability of each id of the targets after the prompt and the ids before it.

        Args:
            queries: prompts and targets; the ids count, not the texts.
            reads_targets: let routing decisions read the targets too, for texts without a known end of the prompt.

        Raises:
            UserError: if the method chooses tokens without giving them probabilities; the default.
        """
        raise UserError(
            f"{type(self).__name__} chooses tokens without giving them probabilities",
            fix="generate text, without logprobs",
        )

    def scope(self, queries: Sequence[Query]) -> list[float] | None:
        """Return the routing score of each prompt in [0, 1], 1 for in scope of an edit; None if the method has none."""
        return None

    def diagnostics(self) -> Mapping[str, float]:
        """Return further numbers about the edit, stored with the metrics."""
        return {}

    def remarks(self) -> Sequence[str]:
        """Return what readers of the scores must know about this edit, one clause each; shown by the run and under tables."""
        return ()

    def formula_flops(self) -> Mapping[str, int]:
        """Return FLOPs, or tokens that cost as much, by the formulas of the method's paper; stored next to those counted."""
        return {}

    def state(self) -> State:
        """Return all state outside the weights, from which `Method.extend` rebuilds the same model bit for bit."""
        return {}

    def revert(self) -> None:
        """Restore the model passed to `edit`, bit for bit."""
        return


def _length(row: int, ids: Sequence[int], ends: Ends) -> int:
    """Number of ids up to the one that a row ends with."""
    return next((place for place, id_ in enumerate(ids, 1) if ends(row, id_)), len(ids))
