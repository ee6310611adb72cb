"""When which edits are made and scored: all at once, or in blocks with scores on the way."""

import itertools
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

from harness.records import DataRef, DataSet


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
        """Whether there are several acts of editing, one on top of the other."""
        return self.kind == "sequential"

    def within(self, edits: int) -> "Schedule":
        """The schedule of so many edits: points and blocks beyond the end fall on the end, which is always scored."""
        if not self.is_sequential:
            return self
        points = {point for point in self.score_at if point < edits} | {edits}
        return Schedule("sequential", min(self.block, edits), tuple(sorted(points)))

    def points(self, edits: int) -> tuple[int, ...]:
        """Numbers of edits so far at which so many edits are scored, the last of them at the end."""
        return self.within(edits).score_at or (edits,)

    def blocks(self, edits: int) -> list[range]:
        """Places of the edits that are applied together; a block ends at each multiple of its size and at each point."""
        ends = {edits, *self.points(edits)}
        if self.is_sequential:
            ends.update(range(self.block, edits, self.block))
        ordered = [0, *sorted(ends)]
        return [range(start, end) for start, end in itertools.pairwise(ordered)]

    def identity(self) -> dict[str, Any]:
        """What a cell's identity holds of it."""
        if not self.is_sequential:
            return {"kind": self.kind}
        return {"kind": self.kind, "block": self.block, "score_at": list(self.score_at)}


@dataclass(frozen=True, slots=True)
class FirstEdits(DataRef):
    """The records of a reference as they are scored on the way: only the first `so_far` edits, all the pools.

    What is asked is then less than of the whole, and so are the batches in which the unedited model has to be asked it.
    """

    so_far: int = 0

    @classmethod
    def of(cls, whole: DataRef, so_far: int) -> Self:
        """The first edits of a reference."""
        return cls(**{field.name: getattr(whole, field.name) for field in fields(DataRef)}, so_far=so_far)

    @property
    def whole(self) -> DataRef:
        """The reference to all records."""
        return DataRef(**{field.name: getattr(self, field.name) for field in fields(DataRef)})

    def identity(self) -> dict[str, object]:
        """That of the whole, and how many of the edits."""
        return {**self.whole.identity(), "so_far": self.so_far}

    def cut(self, data: DataSet) -> DataSet:
        """The records, out of all of them."""
        return replace(data, ref=self, edits=data.edits[: self.so_far])
