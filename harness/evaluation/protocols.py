"""The two protocols of the paper: teacher forcing and greedy generation."""

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.evaluation.protocol import Protocol
from harness.registry import register_protocol

if TYPE_CHECKING:
    from harness.api import EditedModel
    from harness.tokens import Query


@register_protocol
class TeacherForced(Protocol):
    """Arg-max at each target position given the prompt and the preceding target ids (OnceEdit, Table 1)."""

    name: ClassVar[str] = "teacher_forced"
    title: ClassVar[str] = "teacher-forced"
    version: ClassVar[int] = 1
    key: ClassVar[str] = name

    def predict(self, model: "EditedModel", queries: "Sequence[Query]") -> list[list[int]]:
        """Run one forward pass."""
        return model.teacher_forced(queries)

    def context(self, query: "Query", position: int) -> Hashable:
        """The prompt and the target up to that position."""
        return query.prompt_ids + query.target_ids[:position]


@register_protocol
class Generation(Protocol):
    """Greedy continuation of the prompt alone, exactly as long as the target."""

    name: ClassVar[str] = "generation"
    title: ClassVar[str] = "generation"
    version: ClassVar[int] = 1
    key: ClassVar[str] = name

    def predict(self, model: "EditedModel", queries: "Sequence[Query]") -> list[list[int]]:
        """Decode one batch."""
        return model.generate(queries)

    def context(self, query: "Query", position: int) -> Hashable:
        """The prompt, which decides the whole continuation."""
        return query.prompt_ids, position


OWN: tuple[Protocol, ...] = (TeacherForced(), Generation())
"""The protocols of this module, which share their questions and treat every method alike."""
