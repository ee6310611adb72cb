"""What an evaluation protocol is: how a question is tokenised, how it is asked, and which ids are scored."""

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

    Attributes:
        name: as written in a suite; the entry of its scores in metrics.json.
        version: raised whenever it asks or scores otherwise; part of every cell.
        key: sets a protocol's forms apart, where methods are not all asked alike.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    key: ClassVar[str]

    def of(self, method: "MethodSpec") -> "Protocol":
        """The form in which a method is asked."""
        return self

    def forms(self) -> "tuple[Protocol, ...]":
        """All that `of` may give."""
        return (self,)

    @staticmethod
    def queries(tokenizer: "PreTrainedTokenizerBase", pairs: Sequence[tuple[str, str]]) -> list[Query]:
        """Questions in ids; prompt and target tokenised together unless a protocol has a way of its own.

        Raises:
            ValueError: if nothing of the prompt or of the target is left.
        """
        return joint_queries(tokenizer, pairs)

    @abstractmethod
    def predict(self, model: "EditedModel", queries: Sequence[Query]) -> list[list[int]]:
        """Predicted ids, one list per query and as long as its target, in one batch."""

    def compared(self, query: Query, predicted: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> Sequence[int]:
        """What of a prediction is compared with the target or, for locality, with the unedited model's."""
        return predicted
