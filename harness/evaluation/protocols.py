"""The two ways to ask an edited model: with the answer as context, or freely. Their versions are part of every cell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar
from typing import Protocol as Interface

from harness.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from harness.tokens import Query
    from methods.base import EditedModel


class Protocol(Interface):
    """A way to get, for each query, as many predicted ids as its target has."""

    name: ClassVar[str]
    version: ClassVar[int]

    def predict(self, model: "EditedModel", queries: "Sequence[Query]") -> list[list[int]]:
        """Predicted ids, one list per query, in one batch."""
        ...


@dataclass(frozen=True, slots=True)
class TeacherForced:
    """Arg-max at each target position given the prompt and the target ids before it; the paper's Table 1."""

    name: ClassVar[str] = "teacher_forced"
    version: ClassVar[int] = 1

    def predict(self, model: "EditedModel", queries: "Sequence[Query]") -> list[list[int]]:
        """One forward per batch."""
        return model.teacher_forced(queries)


@dataclass(frozen=True, slots=True)
class Generation:
    """Greedy continuation of the prompt alone, exactly as long as the target."""

    name: ClassVar[str] = "generation"
    version: ClassVar[int] = 1

    def predict(self, model: "EditedModel", queries: "Sequence[Query]") -> list[list[int]]:
        """One decoding per batch."""
        return model.generate(queries)


PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (TeacherForced(), Generation())}


def get(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        UserError: for an unknown name, with the nearest known one.

    """
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise UserError(f"unknown protocol '{name}'{did_you_mean(name, set(PROTOCOLS))}", fix=f"protocols: {known}")
    return PROTOCOLS[name]
