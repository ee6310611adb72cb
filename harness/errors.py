"""The exception for errors that a user can fix; anything else is a bug and keeps its traceback."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

Memory: TypeAlias = Literal["GPU", "RAM"]
"""A memory that a job can run out of: of its GPUs, or of its node."""


class UserError(Exception):
    """An error that the user can fix: what is wrong and where, with a command or action that fixes it.

    The command line prints it as one line and exits with code 2.
    """

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} → {self.fix}" if self.fix else self.message


class UnavailableError(UserError):
    """Something that some cells need is missing on this machine or for their model; other cells can run without it.

    A mistake in a suite is a plain `UserError`.
    """


class NoMatchError(UserError):
    """A filter on the command line matches nothing in a suite; it may match something in a different one."""


class InsufficientMemoryError(Exception):
    """A job needs more memory than it has; on a larger machine it may succeed.

    Not a `UserError`, because code that goes on without what an edited model cannot do must not go on after this.
    """

    def __init__(self, message: str, memory: Memory = "GPU") -> None:
        super().__init__(message)
        self.memory = memory


def nearest(word: str, known: Iterable[str], titles: Mapping[str, str] = MappingProxyType({})) -> str | None:
    """The known name nearest to a word, whatever its case, or None if none is close.

    Args:
        word: as written.
        known: names.
        titles: what some of them are called elsewhere, with the names.
    """
    import difflib  # slow to import, and rarely needed

    names = {**titles, **{name: name for name in known}}
    plain = {spelling.casefold(): names[spelling] for spelling in sorted(names, reverse=True)}
    found = difflib.get_close_matches(word.casefold(), sorted(plain), n=1, cutoff=0.6)
    return plain[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str], titles: Mapping[str, str] = MappingProxyType({})) -> str:
    """Suggest the nearest known name, as text to append to an error message; empty if none is close."""
    found = nearest(word, known, titles)
    return f" (did you mean '{found}'?)" if found else ""
