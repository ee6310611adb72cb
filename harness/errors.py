"""The exception for errors that a user can fix; anything else is a bug and keeps its traceback."""

from collections.abc import Iterable


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


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggest the nearest known name, as text to append to an error message; empty if none is close."""
    import difflib  # slow to import, and rarely needed

    nearest = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""
