"""Edit schedules: all edits at once, or sequential blocks with scoring in between."""

import itertools
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Schedule:
    """A batch of all edits, or a sequence of blocks.

    Attributes:
        block: number of edits applied together; 0 for a batch.
        score_at: numbers of edits after which all edits so far are scored; empty for a batch.
    """

    kind: Literal["batch", "sequential"] = "batch"
    block: int = 0
    score_at: tuple[int, ...] = ()

    @property
    def is_sequential(self) -> bool:
        """Whether edits are applied in blocks, each on top of the previous ones."""
        return self.kind == "sequential"

    def within(self, edits: int) -> "Schedule":
        """Fit the schedule to a number of edits; later points and blocks move to the end, which is always scored."""
        if not self.is_sequential:
            return self
        points = {point for point in self.score_at if point < edits} | {edits}
        return Schedule("sequential", min(self.block, edits), tuple(sorted(points)))

    def points(self, edits: int) -> tuple[int, ...]:
        """Numbers of edits after which scores are taken; the last is `edits`."""
        return self.within(edits).score_at or (edits,)

    def blocks(self, edits: int) -> list[range]:
        """Index ranges of edits applied together; a block ends at each multiple of its size and at each scoring point."""
        ends = {edits, *self.points(edits)}
        if self.is_sequential:
            ends.update(range(self.block, edits, self.block))
        ordered = [0, *sorted(ends)]
        return [range(start, end) for start, end in itertools.pairwise(ordered)]

    def identity(self) -> dict[str, Any]:
        """The schedule's part of a cell's identity."""
        if not self.is_sequential:
            return {"kind": self.kind}
        return {"kind": self.kind, "block": self.block, "score_at": list(self.score_at)}
