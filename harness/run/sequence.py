"""Edits in sequence: block after block, each on top of the previous ones, with a checkpoint after each.

A method that edits weights edits the model again as it is; one that keeps state next to the weights extends it. Both are kept
alike: the weights that differ from the unedited model's, and the state that the method hands out.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from harness.api import EditedModel, Method, State
from harness.evaluation.fluency import norm_drift, norms
from harness.evaluation.metrics import aggregate
from harness.models.edited import WeightEditedModel
from harness.models.loaded import LoadedModel
from harness.models.weights import InstalledWeights, changed, hash_and_fingerprint
from harness.records import Answer, EditRequest
from harness.run.checkpoint import Block, Checkpoint, Point, Progress
from harness.run.context import RunContext
from harness.run.cost import held_memory_bytes
from harness.store import provenance
from harness.suite.schedule import Schedule

Score = Callable[[EditedModel, int], Point]
"""Everything that is asked of an edited model after this many edits."""


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a model in a sequence.

    Attributes:
        hash: of all of them; see `weight_hash`.
        changed: those that differ from the unedited model's, on the model's device.
        norm_drift: growth of the matrices among these; see `fluency.norm_drift`.
    """

    hash: str
    changed: Mapping[str, Tensor]
    norm_drift: float


class Chain:
    """A model that is edited repeatedly; leaving the `with` block restores it to its state before the first edit.

    Args:
        method: one that can continue from its own edits.
        model: unedited.
        folders: of the method's artifacts, by role.
        context: of the run.

    Attributes:
        unedited: hash of all weights of the unedited model.
        edited: the model after the last block.
        state: what the method keeps next to the weights.
    """

    def __init__(self, method: Method, model: LoadedModel, folders: Mapping[str, Path], context: RunContext) -> None:
        self._method, self._model, self._folders, self._context = method, model, folders, context
        self.unedited, self._fingerprint = hash_and_fingerprint(model.model)
        self._norms = norms(model.model.named_parameters())
        self._undo = ExitStack()
        self._is_edited = False
        self.edited: EditedModel = WeightEditedModel(model)
        self.state: State = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def go_on(self, requests: Sequence[EditRequest]) -> None:
        """Apply a block on top of the previous ones. If it fails, the model is as it was before the block."""
        method, model, folders, context = self._method, self._model, self._folders, self._context
        if self._is_edited:
            self.edited = method.extend(model, self.state, requests, folders, context)
        else:
            self.edited = method.edit(model, requests, folders, context)
        self.state = _laid_out(self.edited.state())
        if not self._is_edited:
            self._revert_at_end()  # what later ones would give back is edited already
            self._is_edited = True

    def resume(self, weights: Mapping[str, Tensor], state: State) -> None:
        """Restore the model to where `weights().changed` and `state` were taken, without repeating the edits."""
        self._undo.callback(InstalledWeights(self._model.model, weights).restore)
        self._is_edited, self.state = True, state
        if state:
            self.go_on(())
            self._revert_at_end()

    def _revert_at_end(self) -> None:
        """Let the present edited model restore the model at the end. One that has nothing to restore is not kept until then."""
        if type(self.edited).revert is not EditedModel.revert:
            self._undo.callback(self.edited.revert)

    def weights(self) -> Weights:
        """The weights as they are now. All are read once, which takes seconds on a CPU for a model of billions."""
        model = self._model.model
        hash_, now = hash_and_fingerprint(model)
        found = changed(model, self._fingerprint, now)
        return Weights(hash_, found, norm_drift(self._norms, norms(found.items())))


@dataclass(frozen=True, slots=True)
class Sequenced:
    """A finished sequence.

    Attributes:
        points: by the number of edits so far, in order.
    """

    progress: Progress
    points: Mapping[int, Point]


class SequenceRun:
    """Applies the remaining blocks and scores the remaining points, with a checkpoint after each.

    Args:
        checkpoint: of this cell.
        context: of the run; each block and each point gets a clock of its own.
        seed: of the cell; every block has the same.
        score: asks an edited model everything about its edits so far.
    """

    def __init__(self, checkpoint: Checkpoint, context: RunContext, seed: int, score: Score) -> None:
        self._checkpoint, self._context, self._seed, self._score = checkpoint, context, seed, score

    def run(self, chain: Chain, requests: Sequence[EditRequest], schedule: Schedule) -> Sequenced:
        """Run the sequence from its checkpoint, or from its start, to its end.

        Raises:
            UserError: when what was kept is not what was written, or belongs to other weights.
        """
        progress = self._start(chain, schedule.points(len(requests)))
        points = {edits: point for edits, point in self._checkpoint.points().items() if edits <= progress.edits}
        is_interrupted = bool(progress.blocks)
        for places in schedule.blocks(len(requests)):
            if places.stop > progress.edits:
                clock = self._context.restart(self._seed)
                self._context.peak_memory.begin_part()
                chain.go_on(requests[places.start : places.stop])
                peak_bytes = self._context.peak_memory.part_bytes
                held_bytes = held_memory_bytes(self._context.device)
                weights = chain.weights()
                block = Block(
                    edits=places.stop,
                    phases_s=clock.seconds,
                    citable=not is_interrupted,
                    memory_bytes=held_bytes,
                    peak_memory_bytes=peak_bytes,
                    norm_drift=weights.norm_drift,
                )
                is_interrupted = False
                progress = replace(
                    progress,
                    blocks=(*progress.blocks, block),
                    weights=weights.hash,
                    diagnostics=dict(chain.edited.diagnostics()),
                )
                self._checkpoint.keep(progress, weights.changed, chain.state)
            if places.stop in schedule.points(len(requests)) and places.stop not in points:
                self._context.restart(self._seed)
                points[places.stop] = self._score(chain.edited, places.stop)
                self._checkpoint.keep_point(places.stop, points[places.stop])
        return Sequenced(progress, points)

    def _start(self, chain: Chain, points: Sequence[int]) -> Progress:
        """The beginning, or the end of the last block that was kept: then with the model as it was there."""
        progress = self._checkpoint.progress()
        if progress is None:
            return Progress(chain.unedited, chain.unedited)
        if progress.unedited != chain.unedited:
            raise self._checkpoint.unusable("it was made from different weights")
        lost = [point for point in points if point < progress.edits and point not in self._checkpoint.points()]
        if lost:
            raise self._checkpoint.unusable(f"the scores after {lost[0]} edits are missing")
        chain.resume(*self._checkpoint.tensors(self._context.device))
        if chain.weights().hash != progress.weights:
            raise self._checkpoint.unusable("the weights are not those that were saved")
        environment = provenance.environment()
        again = {key: environment[key] for key in ("command", "commit", "dirty", "host")}
        again |= {"edits": progress.edits, "started": datetime.now(UTC).isoformat()}
        return replace(progress, resumed=(*progress.resumed, again))


def curve_metrics(points: Mapping[int, Sequence[Answer]], place: Mapping[str, int]) -> dict[str, Any]:
    """Metrics of every point, by the number of edits so far.

    Args:
        points: answers by that number, in order.
        place: number of each record's edit, from 1.

    Returns:
        For each point what `aggregate` says of all edits so far, and as `retained` what it says of those alone that were
        made before the first point: how much is left of them.
    """
    first = min(points)
    return {
        str(edits): {
            **aggregate(rows),
            "retained": aggregate(row for row in rows if place.get(row.record_id, first + 1) <= first),
        }
        for edits, rows in points.items()
    }


def _laid_out(state: State) -> dict[str, Tensor]:
    """As a file gives tensors back: products with a view of something larger may be rounded otherwise."""
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
