"""Base class of evaluation protocols: tokenisation, prediction, the ids that are compared, and the score."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.evaluation.metrics import row
from harness.evaluation.probes import ProbeQuery
from harness.records import Answer
from harness.tokens import Query, joint_queries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.api import EditedModel
    from harness.registry import MethodSpec


class Protocol(ABC):
    """A way to ask questions and to score the answers; by default an answer has as many ids as the question's target.

    Register a subclass with `harness.registry.register_protocol` so that suites can use it. A protocol that treats some
    methods differently has several forms: `of` selects the form for a method, and the unedited model is run in all of them.

    Class attributes:
        name: as written in a suite; key of its scores in metrics.json.
        title: as printed in a table.
        version: increased whenever prompting or scoring changes; part of every cell's identity.
        key: distinguishes the forms of a protocol; equal to the name if there is only one.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[int]
    key: ClassVar[str]

    def of(self, method: "MethodSpec") -> "Protocol":
        """Return the form used for a method; by default the protocol itself."""
        return self

    def forms(self) -> "tuple[Protocol, ...]":
        """Return every form that `of` may return."""
        return (self,)

    @staticmethod
    def queries(tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[tuple[str, str]]) -> list[Query]:
        """Tokenise pairs of prompt and target; by default both as one text (see `harness.tokens.joint_queries`).

        Raises:
            ValueError: if nothing of the prompt or of the target is left.
        """
        return joint_queries(tokenizer, pairs)

    @abstractmethod
    def predict(self, model: "EditedModel", queries: Sequence[Query]) -> list[list[int]]:
        """Predict one batch: per query, a list of ids as long as its target, unless `row` scores others too."""

    def context(self, query: Query, position: int) -> Hashable | None:
        """Everything that the id predicted at a position of the target depends on; None, the default, if unknown.

        A model predicts the same id in the same context, so questions that want different ids there exclude each other.
        """
        return None

    def compared(self, query: Query, predicted: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> Sequence[int]:
        """Select the ids of a prediction that are compared with the target or, for locality, the unedited model's."""
        return predicted

    def row(
        self,
        asked: ProbeQuery,
        compared: Sequence[int],
        unedited: Sequence[int] | None,
        scope: float,
        tokenizer: "PreTrainedTokenizerBase",
    ) -> Answer:
        """Score one answer, by default id by id (see `harness.evaluation.metrics.row`).

        Args:
            asked: the question.
            compared: the selected ids of the edited model's answer.
            unedited: those of the unedited model's; given for locality only.
            scope: routing score of the prompt; NaN if the method has none.
            tokenizer: of the target model.
        """
        return row(asked, self.name, compared, tokenizer.decode(compared), unedited, scope)
