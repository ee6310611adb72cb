"""Open a finished cell: load its edits if they were kept, or make them again as the cell did."""

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from harness.api import EditedModel
from harness.data.load import load
from harness.errors import UserError
from harness.evaluation.ask import predict
from harness.evaluation.probes import probe_queries
from harness.live.model import LiveModel, Origin
from harness.models.edited import InstalledModel, WeightEditedModel
from harness.models.weights import FILE, changed, fingerprint
from harness.plan.cell import Cell, model_artifacts
from harness.plan.job import job_of
from harness.records import EditRequest
from harness.registry import code_of, protocols
from harness.run.bench import Bench
from harness.run.context import RunContext
from harness.run.jobs import prepare_torch
from harness.run.progress import Display
from harness.run.runner import Runner
from harness.run.sequence import Chain
from harness.store.artifacts import ArtifactCache
from harness.store.rows import read_rows
from harness.store.store import Folder, Store

KEPT = ("metrics", "provenance")
"""Files of a cell whose content is exported with the model."""


def device_of(wanted: str = "auto") -> str:
    """`auto` is the GPU if torch sees one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def open_cell(cell: Cell, store: Store, device: str, display: Display) -> LiveModel:
    """The edited model of a cell; missing artifacts are built.

    Weights that the cell kept are used as they are. A method that keeps its edits elsewhere makes them again: with the same
    records, seed and artifacts the outcome is the same.

    Args:
        cell: the cell; it need not have run.
        store: where its artifacts are, or will be.
        device: `cpu` or `cuda`.
        display: shows progress.

    Raises:
        UserError: if the model, the records or an artifact cannot be had.
    """
    prepare_torch(None)
    context = RunContext(ArtifactCache(store), device, display)
    _build(cell, store, context)
    bench, folder = Bench.of(cell, store, context), store.cell(cell.folder)
    requests = tuple(record.request() for record in context.load_data(cell.data).edits)
    origin = Origin(
        cell.method,
        cell.backend,
        bench.method.hparams.model_dump(mode="json"),
        bench.model.ref,
        requests,
        cell.seed,
        bench.folders,
        folder.path,
        _facts(cell, folder),
        code_of(bench.method),
    )
    unedited = WeightEditedModel(bench.model)
    kept = folder.path / FILE
    if kept.is_file():
        from safetensors.torch import load_file

        edited = InstalledModel(bench.model, load_file(kept, device=str(bench.model.device)))
        return LiveModel(bench.model, edited, unedited, origin)
    before = fingerprint(bench.model.model)
    with ExitStack() as undo:
        made = _edited(bench, requests, context, undo)
        if not cell.method.is_in_weights:
            return LiveModel(bench.model, made, unedited, origin, undo.pop_all().close)
        weights = {name: value.clone() for name, value in changed(bench.model.model, before).items()}
    return LiveModel(bench.model, InstalledModel(bench.model, weights, made.diagnostics()), unedited, origin)


@dataclass(frozen=True, slots=True)
class Check:
    """How many answers are the same as when the cell was scored.

    Attributes:
        asked: number of questions about the edits themselves.
        same: number of those that got the stored answer.
    """

    asked: int
    same: int

    @property
    def is_same(self) -> bool:
        """Whether all answers are the same."""
        return self.same == self.asked

    def __str__(self) -> str:
        return f"{self.same} of {self.asked} stored answers to the edits are the same"


def check(live: LiveModel, cell: Cell, store: Path) -> Check:
    """Ask the edits' own prompts again, in the same batches, and compare the answers with those in `records.parquet`."""
    protocol = protocols.get(cell.protocols[0]).of(cell.method)
    asked = probe_queries(load(cell.data), live.model.tokenizer, ("reliability",), protocol.queries)
    stored = {
        (row.record_id, row.probe): row.predicted
        for row in read_rows(Store(store).cell(cell.folder).path / "records.parquet")
        if row.protocol == protocol.name and row.axis == "reliability"
    }
    tokenizer, same = live.model.tokenizer, 0
    for one, ids in zip(asked, predict(live, asked, protocol, cell.eval_batch), strict=True):
        row = protocol.row(one, protocol.compared(one.query, ids, tokenizer), None, math.nan, tokenizer)
        same += row.predicted == stored.get((one.record_id, one.probe))
    return Check(len(asked), same)


def _edited(bench: Bench, requests: Sequence[EditRequest], context: RunContext, undo: ExitStack) -> EditedModel:
    """Make the edits as the runner does: at once, or block after block."""
    cell = bench.cell
    context.restart(cell.seed)
    if not cell.schedule.is_sequential:
        edited = bench.method.edit(bench.model, requests, bench.folders, context)
        undo.callback(edited.revert)
        return edited
    chain = undo.enter_context(Chain(bench.method, bench.model, bench.folders, context))
    for places in cell.schedule.blocks(len(requests)):
        context.restart(cell.seed)
        chain.go_on(requests[places.start : places.stop])
    return chain.edited


def _build(cell: Cell, store: Store, context: RunContext) -> None:
    """Build what the cell's method needs and the store does not have; not the answers of the unedited model."""
    needed = (*model_artifacts(cell.model).values(), *cell.artifacts().values())
    wanted = {need.key: need for root in needed for need in root.closure()}
    cache = ArtifactCache(store)
    missing = [spec for spec in wanted.values() if not cache.is_built(spec)]
    if not missing:
        return
    with store.locked():
        runner = Runner(store, context)
        for spec in missing:
            store.artifact(spec.name, spec.key).reopen()
            outcome = runner.run(job_of(spec, cell.seed, context.device))
            if outcome.reason is not None:
                raise UserError(f"artifact {spec.name} of {cell.label}: {outcome.reason}")


def _facts(cell: Cell, folder: Folder) -> dict[str, Any]:
    """What a cell has said about itself, if it has run."""
    if not folder.is_done:
        return {}
    return {"cell": folder.path.name, "cell_id": cell.cell_id, **{name: folder.read(f"{name}.json") for name in KEPT}}
