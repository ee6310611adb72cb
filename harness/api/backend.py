"""Backends: other code bases that implement the same methods."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check of `harness doctor`.

    Attributes:
        what: what was checked.
        is_present: whether it is there and can be used.
        detail: its version or place, or what is missing and how to get it.
        is_optional: whether the harness works without it.
    """

    what: str
    is_present: bool
    detail: str
    is_optional: bool = True


class Backend(ABC):
    """A different code base that implements methods under the same names as the native ones.

    Attributes:
        commands: `module:app` of a typer application with the backend's own commands, or empty.
    """

    commands: ClassVar[str] = ""

    @abstractmethod
    def is_available(self) -> bool:
        """Whether the backend can run on this machine."""

    def findings(self) -> Iterator[Finding]:
        """Yield the checks that `harness doctor` reports."""
        yield from ()
