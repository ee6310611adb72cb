"""When edits are made and scored: all at once, or in blocks with scores in between."""

import itertools
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Schedule:
    """All edits at once, or in blocks.

    Attributes:
        block: edits that are applied together; 0 for a batch.
        score_at: numbers of edits so far at which all of them are scored; empty for a batch.
    """

    kind: Literal["batch", "sequential"] = "batch"
    block: int = 0
    score_at: tuple[int, ...] = ()

    @property
    def is_sequential(self) -> bool:
        """Whether there are several edit runs, one on top of the other."""
        return self.kind == "sequential"

    def within(self, edits: int) -> "Schedule":
        """The schedule for this many edits: points and blocks beyond the end move to the end, which is always scored."""
        if not self.is_sequential:
            return self
        points = {point for point in self.score_at if point < edits} | {edits}
        return Schedule("sequential", min(self.block, edits), tuple(sorted(points)))

    def points(self, edits: int) -> tuple[int, ...]:
        """Numbers of edits so far at which they are scored; the last one is `edits`."""
        return self.within(edits).score_at or (edits,)

    def blocks(self, edits: int) -> list[range]:
        """Indices of the edits that are applied together; a block ends at each multiple of its size and at each point."""
        ends = {edits, *self.points(edits)}
        if self.is_sequential:
            ends.update(range(self.block, edits, self.block))
        ordered = [0, *sorted(ends)]
        return [range(start, end) for start, end in itertools.pairwise(ordered)]

    def identity(self) -> dict[str, Any]:
        """Its part of a cell's identity."""
        if not self.is_sequential:
            return {"kind": self.kind}
        return {"kind": self.kind, "block": self.block, "score_at": list(self.score_at)}
