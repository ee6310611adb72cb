"""The ways to ask an edited model: with the answer as context, freely, or as EasyEdit does. A cell's id holds their versions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.errors import UserError, did_you_mean
from harness.evaluation.easyedit import EasyEdit
from harness.evaluation.protocol import Protocol

if TYPE_CHECKING:
    from harness.tokens import Query
    from methods.base import EditedModel


class TeacherForced(Protocol):
    """Arg-max at each target position given the prompt and the target ids before it; the paper's Table 1."""

    name: ClassVar[str] = "teacher_forced"
    version: ClassVar[int] = 1
    key: ClassVar[str] = name

    def predict(self, model: "EditedModel", queries: "Sequence[Query]") -> list[list[int]]:
        """One forward per batch."""
        return model.teacher_forced(queries)


class Generation(Protocol):
    """Greedy continuation of the prompt alone, exactly as long as the target."""

    name: ClassVar[str] = "generation"
    version: ClassVar[int] = 1
    key: ClassVar[str] = name

    def predict(self, model: "EditedModel", queries: "Sequence[Query]") -> list[list[int]]:
        """One decoding per batch."""
        return model.generate(queries)


OWN: tuple[Protocol, ...] = (TeacherForced(), Generation())
"""The harness's own: they share their questions, and every method is asked alike."""

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (*OWN, EasyEdit())}


def get(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        UserError: for an unknown name, with the nearest known one.

    """
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise UserError(f"unknown protocol '{name}'{did_you_mean(name, set(PROTOCOLS))}", fix=f"protocols: {known}")
    return PROTOCOLS[name]
