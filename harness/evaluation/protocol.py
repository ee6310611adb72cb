"""The contract of an evaluation protocol: how a question is tokenised, how it is asked, and which ids are scored."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.tokens import Query, joint_queries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from harness.api import EditedModel
    from harness.registry import MethodSpec


class Protocol(ABC):
    """A way to get, for each question, as many ids as its target has.

    `harness.registry.register_protocol` adds a subclass, so that suites can name it. One that asks some methods in another
    way than others has several forms: `of` picks one for a method, and the unedited model is asked in all of them.

    Class attributes:
        name: as written in a suite; key of its scores in metrics.json.
        title: as printed in a table.
        version: raised whenever it asks or scores differently; part of every cell's identity.
        key: tells the forms of a protocol apart; the name if there is only one.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[int]
    key: ClassVar[str]

    def of(self, method: "MethodSpec") -> "Protocol":
        """The form in which a method is asked; by default the protocol itself."""
        return self

    def forms(self) -> "tuple[Protocol, ...]":
        """Every form that `of` may return."""
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
        """Predicted ids, one list per query and as long as its target, in one batch."""

    def compared(self, query: Query, predicted: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> Sequence[int]:
        """The ids of a prediction that are compared with the target or, for locality, with the unedited model's."""
        return predicted
