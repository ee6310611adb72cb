"""The answers of a batch while they are written: what each row has, and which rows get more."""

from collections.abc import Callable, Sequence

from harness.tokens import Query

RowEnds = Callable[[int, Sequence[int], bool], bool]
"""Told a row, its tokens so far, and whether any of them is not the target model's own; whether the row is over."""


class Answers:
    """The tokens of each row.

    Args:
        queries: a row gets at most as many tokens as its query's target.
        ends: whether a row is over before that.

    Attributes:
        made: the tokens of each row so far.
        changed: rows with a token that is not the target model's own.
    """

    def __init__(self, queries: Sequence[Query], ends: RowEnds | None = None) -> None:
        self._limits = [len(query.target_ids) for query in queries]
        self._ends = ends
        self._over = {row for row, limit in enumerate(self._limits) if not limit}
        self.made: list[list[int]] = [[] for _ in queries]
        self.changed: set[int] = set()

    def add(self, row: int, token: int, *, is_changed: bool) -> None:
        """Add the next token of a row that is not over.

        Args:
            row: the row.
            token: its next token.
            is_changed: whether the target model's own choice is another one.
        """
        ids = self.made[row]
        ids.append(token)
        if is_changed:
            self.changed.add(row)
        if (self._ends is not None and self._ends(row, ids, row in self.changed)) or len(ids) == self._limits[row]:
            self._over.add(row)

    def is_over(self, row: int) -> bool:
        """Whether a row gets no more tokens."""
        return row in self._over

    def most(self, row: int) -> int:
        """The largest number of tokens that a row which is not over can still get."""
        return self._limits[row] - len(self.made[row])

    def continuing(self, step: int) -> list[int]:
        """The rows that have, or will get, a token after their first `step`."""
        return [row for row, ids in enumerate(self.made) if len(ids) > step or row not in self._over]

    @property
    def unfinished(self) -> list[int]:
        """The rows that get another token."""
        return [row for row in range(len(self.made)) if row not in self._over]
