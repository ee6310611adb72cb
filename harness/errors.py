"""The one exception for what a user can fix; everything else is a bug and keeps its traceback."""

from collections.abc import Iterable


class UserError(Exception):
    """A sentence that says what is wrong and where, with the command that fixes it.

    The command line prints it as one line and exits with code 2.
    """

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message} → {self.fix}" if self.fix else self.message


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The parenthesis that follows an unknown name: the nearest known one, or nothing."""
    import difflib  # slower than most commands that never need it

    nearest = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""
