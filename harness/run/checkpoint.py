"""The checkpoint of a sequence of edits: written after each block, so that a killed run continues from there.

It is a hidden folder next to the cell's: one folder with the state of the edit after the last block, and one with the rows of
each point that was scored. Each of them appears whole. Only the first says how far the sequence is; scores never do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.commands import same_command
from harness.errors import UserError
from harness.files import write_json
from harness.identity import file_digest
from harness.records import Answer, ItemScore
from harness.store.rows import read_items, read_rows, write_items, write_rows
from harness.store.store import Folder

if TYPE_CHECKING:
    from torch import Tensor

FILES = ("weights.safetensors", "state.safetensors")


@dataclass(frozen=True, slots=True)
class Block:
    """What it took to apply a block, and how large the weights are afterwards.

    Attributes:
        edits: number of edits so far at its end.
        phases_s: seconds by phase.
        citable: False for the first block after an interruption: an earlier run may have begun it.
        memory_bytes: memory in use at its end (`cost.held_memory_bytes`).
        peak_memory_bytes: highest memory use while it was applied (`cost.peak_memory_bytes`).
        norm_drift: of all blocks so far (`fluency.norm_drift`).
    """

    edits: int
    phases_s: dict[str, float]
    citable: bool
    memory_bytes: int
    peak_memory_bytes: int
    norm_drift: float


@dataclass(frozen=True, slots=True)
class Point:
    """The scores of all edits so far.

    Attributes:
        rows: one per answer; none for random weights.
        phases_s: seconds by phase.
        items: scores of benchmark tasks.
        remarks: why there are none of some tasks.
    """

    rows: Sequence[Answer]
    phases_s: dict[str, float]
    items: Sequence[ItemScore] = ()
    remarks: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sequence is.

    Attributes:
        unedited, weights: hash of all weights before the first edit and after the last one.
        blocks: those that were applied.
        diagnostics: of the edited model after the last block.
        resumed: where and when a later run went on, in order.
    """

    unedited: str
    weights: str
    blocks: tuple[Block, ...] = ()
    diagnostics: Mapping[str, float] = field(default_factory=dict)
    resumed: tuple[Mapping[str, Any], ...] = ()

    @property
    def edits(self) -> int:
        """Number of edits so far."""
        return self.blocks[-1].edits if self.blocks else 0


class Checkpoint:
    """The hidden folder of one sequence.

    Args:
        root: where it is, or will be.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def progress(self) -> Progress | None:
        """How far the sequence was when it was last kept; None if it never was.

        Raises:
            UserError: when a version of this program with other blocks has written it.
        """
        kept = self._kept()
        if not kept:
            return None
        content = kept[-1].read("progress.json")["progress"]
        known = {field.name for field in fields(Block)}
        if any(block.keys() != known for block in content["blocks"]):
            raise self.unusable("another version of this program has written it")
        blocks = tuple(Block(**block) for block in content.pop("blocks"))
        return Progress(**{**content, "blocks": blocks, "resumed": tuple(content["resumed"])})

    def tensors(self, device: str) -> "tuple[dict[str, Tensor], dict[str, Tensor]]":
        """The changed weights and the state next to them, as they were last kept.

        Raises:
            UserError: when somebody has changed the files.
        """
        from safetensors.torch import load_file

        folder = self._kept()[-1]
        for name, written in folder.read("progress.json")["files"].items():
            if file_digest(folder.path / name) != written:
                raise self.unusable(f"{name} is not what was written")
        weights, state = (load_file(folder.path / name, device=device) for name in FILES)
        return weights, state

    def keep(self, progress: Progress, weights: "Mapping[str, Tensor]", state: "Mapping[str, Tensor]") -> None:
        """Keep the state after a block; what was kept before goes once this one is whole."""
        from safetensors.torch import save_file

        with Folder(self.root / f"edits-{progress.edits:07d}").writing() as folder:
            for name, tensors in zip(FILES, (weights, state), strict=True):
                # each with a storage of its own, which the format asks for
                save_file({key: value.cpu().clone() for key, value in tensors.items()}, folder / name)
            files = {name: file_digest(folder / name) for name in FILES}
            write_json(folder / "progress.json", {"progress": asdict(progress), "files": files})
        for older in self._kept()[:-1]:
            older.remove()

    def points(self) -> dict[int, Point]:
        """What was scored, by the number of edits so far, in order."""
        folders = [Folder(path) for path in sorted(self.root.glob("point-*"))]
        return {
            (edits := int(folder.path.name.removeprefix("point-"))): Point(
                read_rows(folder.path / "records.parquet"),
                **folder.read("cost.json"),
                items=read_items(file)[edits] if (file := folder.path / "items.parquet").is_file() else (),
            )
            for folder in folders
            if folder.is_done
        }

    def keep_point(self, edits: int, point: Point) -> None:
        """Keep the scores after this many edits."""
        with Folder(self.root / f"point-{edits:07d}").writing() as folder:
            write_rows(point.rows, folder / "records.parquet")
            if point.items:
                write_items({edits: point.items}, folder / "items.parquet")
            write_json(folder / "cost.json", {"phases_s": point.phases_s, "remarks": list(point.remarks)})

    def unusable(self, reason: str) -> UserError:
        """The error that says why a sequence cannot continue, and how to start it again."""
        return UserError(
            f"{self.root}: cannot continue from this checkpoint: {reason}", fix=f"rm -r {self.root} && {same_command()}"
        )

    def _kept(self) -> list[Folder]:
        folders = [Folder(path) for path in sorted(self.root.glob("edits-*"))]
        return [folder for folder in folders if folder.is_done]
