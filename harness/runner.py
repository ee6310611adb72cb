"""One cell from start to end: load, edit, evaluate, revert, write. Knows no method by name, no launcher, no MLflow."""

import io
import time
import traceback
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import torch

from harness import provenance
from harness.artifacts import ArtifactCache
from harness.cell import Cell
from harness.context import RunContext
from harness.cost import add_phases, device_class, peak_memory_bytes, reset_peak_memory
from harness.data.load import files as data_files
from harness.errors import UserError
from harness.evaluation.evaluate import evaluate, question_count
from harness.evaluation.metrics import Row, aggregate
from harness.evaluation.protocols import PROTOCOLS
from harness.evaluation.scope import scope_metrics
from harness.evaluation.unedited import UneditedOutputs
from harness.models.loaded import LoadedModel
from harness.records import DataSet, EditRequest
from harness.store import Store, write_json
from methods.base import ArtifactSpec, EditedModel
from methods.common.weights import weight_hash


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a cell or an artifact ended: `reason` is None for a finished one."""

    seconds: float
    reason: str | None = None


class Runner:
    """Runs the cells and builds the artifacts of one process."""

    def __init__(self, store: Store, context: RunContext) -> None:
        self._store = store
        self._artifacts = ArtifactCache(store)
        self._context = context

    def build(self, spec: ArtifactSpec, seed: int) -> Outcome:
        """Build an artifact whose needs are built; an error a user can mend is its reason, a bug raises."""
        start = time.perf_counter()
        try:
            self._artifacts.build(spec, self._context, self._context.restart(seed))
        except UserError as error:
            return Outcome(time.perf_counter() - start, str(error))
        return Outcome(time.perf_counter() - start)

    def run(self, cell: Cell) -> Outcome:
        """Run one cell and write its folder, finished or failed. Raises only when the store cannot be written."""
        start = time.perf_counter()
        log = io.StringIO()
        try:
            with redirect_stderr(log):
                edited = self._edit_and_evaluate(cell)
        except Exception as error:
            self._context.forget_models()
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            self.fail(cell, reason, log.getvalue() + traceback.format_exc())
            return Outcome(time.perf_counter() - start, reason)
        with self._store.cell(cell.folder).writing() as folder:
            pd.DataFrame([asdict(row) for row in edited.rows], columns=list(Row.__dataclass_fields__)).to_parquet(
                folder / "records.parquet", index=False
            )
            for name, content in (
                ("cell", cell.description()),
                ("metrics", edited.metrics),
                ("cost", edited.cost),
                ("provenance", edited.provenance),
            ):
                write_json(folder / f"{name}.json", content)
            (folder / "log.txt").write_text(log.getvalue())
        return Outcome(time.perf_counter() - start)

    def fail(self, cell: Cell, reason: str, log: str = "") -> None:
        """Record why a cell has no result."""
        with self._store.cell(cell.folder).failing(reason) as folder:
            write_json(folder / "cell.json", cell.description())
            write_json(folder / "provenance.json", provenance.environment())
            (folder / "log.txt").write_text(log or reason)

    def _edit_and_evaluate(self, cell: Cell) -> "_Result":
        started = datetime.now(UTC)
        context, editor, needed = self._context, cell.editor(), cell.artifacts()
        context.restart(cell.seed)
        model, data = context.load_model(cell.model), context.load_data(cell.data)
        folders = {role: self._artifacts.folder(spec) for role, spec in needed.items()}
        before = weight_hash(model.model)
        requests = [record.request() for record in data.edits]
        shared = [spec.key for spec in needed.values() if spec.kind == "edit"]
        warm_up = _warm_up(cell, data, bool(shared))
        if warm_up:
            editor.edit(model, warm_up, folders, context).revert()

        clock = context.restart(cell.seed)
        reset_peak_memory(context.device)
        edited = editor.edit(model, requests, folders, context)
        try:
            rows = self._evaluate(cell, edited, model)
            diagnostics = dict(edited.diagnostics())
        finally:
            edited.revert()
        if weight_hash(model.model) != before:
            raise RuntimeError(f"{cell.label} did not give the model back bit for bit")

        cost = {
            "phases_s": add_phases(clock.seconds, self._artifacts.phases_s(needed.values())),
            "edits": len(data.edits),
            "edit_actions": (shared or [cell.cell_id]) if cell.method.edits else [],
            "device": context.device,
            "device_class": device_class(context.device),
            "threads": torch.get_num_threads(),
            "peak_memory_bytes": peak_memory_bytes(context.device),
            "warm_up": bool(warm_up),
            "citable": True,
        }
        origin = {
            **provenance.environment(),
            "started": started.isoformat(),
            "finished": datetime.now(UTC).isoformat(),
            "data_files": data_files(cell.data),
            "artifacts": {role: spec.key for role, spec in needed.items()},
            "weights": before,
        }
        metrics: dict[str, Any] = {**aggregate(rows), "diagnostics": diagnostics}
        if scope := scope_metrics(rows):
            metrics["scope"] = scope
        return _Result(rows, metrics, cost, origin)

    def _evaluate(self, cell: Cell, edited: EditedModel, model: LoadedModel) -> list[Row]:
        """All rows of a cell; none for random weights, whose answers mean nothing."""
        if cell.model.weights == "random":
            return []
        context = self._context
        data = context.load_data(cell.data)
        protocols = [PROTOCOLS[name] for name in cell.protocols]
        unedited = UneditedOutputs.load(self._artifacts.folder(cell.unedited_outputs()))
        total = question_count(data, len(protocols) + 1)  # once more for the scope
        with context.progress(f"evaluating {cell.label}", total) as advance, context.clock.phase("evaluate"):
            return evaluate(edited, data, model.tokenizer, protocols, cell.eval_batch, unedited, advance)


def _warm_up(cell: Cell, data: DataSet, is_shared: bool) -> list[EditRequest]:
    """A discarded edit, so that first calls are not timed: another fact, or where the edit is an artifact, its own."""
    if not cell.method.edits:
        return []
    return [record.request() for record in (data.edits if is_shared else data.train[:1])]


@dataclass(frozen=True, slots=True)
class _Result:
    rows: list[Row]
    metrics: dict[str, Any]
    cost: dict[str, Any]
    provenance: dict[str, Any]
