"""One job from start to end; of a cell: load, edit, evaluate, revert, write. Method-agnostic, launcher-agnostic."""

import importlib
import io
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch

from harness import registry
from harness.api import ArtifactSpec, EditedModel
from harness.data.load import files as data_files
from harness.errors import UserError
from harness.evaluation.attainable import attainable
from harness.evaluation.capability import scores
from harness.evaluation.classic import classic_metrics, duels
from harness.evaluation.evaluate import evaluate
from harness.evaluation.fluency import fluency_metrics, norm_drift, norms
from harness.evaluation.metrics import aggregate
from harness.evaluation.probes import question_count
from harness.evaluation.protocol import Protocol
from harness.evaluation.scope import scope_metrics
from harness.evaluation.unedited import UneditedOutputs
from harness.files import write_json
from harness.models.loaded import LoadedModel
from harness.models.weights import FILE, KeptWeights, weight_hash
from harness.plan.cell import Cell, models_of
from harness.plan.job import Job
from harness.plan.recall import references
from harness.records import Answer, Dataset, EditRequest, ItemScore, same_subject
from harness.run.bench import Bench, models_by_role, verify_models
from harness.run.checkpoint import Checkpoint
from harness.run.context import RunContext
from harness.run.cost import PhaseClock, add_phases, device_class, peak_memory_bytes, reset_peak_memory
from harness.run.counting import CellCounter
from harness.run.outcome import Outcome, record_failure
from harness.run.sequence import Chain, SequenceRun, curve_metrics
from harness.store import provenance
from harness.store.artifacts import ArtifactCache
from harness.store.rows import curve, write_items, write_rows
from harness.store.store import Store
from harness.subjects import ambiguous


class Runner:
    """Runs the jobs of one process."""

    def __init__(self, store: Store, context: RunContext) -> None:
        self._store = store
        self._artifacts = ArtifactCache(store)
        self._context = context

    def run(self, job: Job) -> Outcome:
        """Run a job whose needs are built, and write its folder, finished or failed.

        Raises:
            UserError: if the store cannot be written.
        """
        start = time.perf_counter()
        log, result = io.StringIO(), None
        self._context.keep_models(job.models)
        clock = self._context.restart(job.seed)
        try:
            if isinstance(job.work, Cell):
                with redirect_stderr(log):
                    result = self._edit_and_evaluate(job.work)
            else:
                self._build(job.work, clock)
        except Exception as error:
            self._context.forget_models()
            reason = _reason(error)
            record_failure(self._store, job, reason, log.getvalue() + traceback.format_exc())
            return Outcome(time.perf_counter() - start, reason)
        if result is not None:
            self._write(result, log.getvalue())
        return Outcome(time.perf_counter() - start, remarks=result.remarks if result else ())

    def _build(self, spec: ArtifactSpec, clock: PhaseClock) -> None:
        module, _, function = spec.builder.partition(":")
        builder = getattr(importlib.import_module(module), function)
        with self._store.artifact(spec.name, spec.key).writing() as folder:
            builder(spec, self._context, folder)
            models = {role: self._context.model_hashes(ref) for role, ref in models_by_role(spec).items()}
            made_with = {"models": models} if models else {}
            write_json(folder / "artifact.json", {**spec.description(), **made_with})
            steps = dict(self._context.steps)
            write_json(folder / "cost.json", {"phases_s": clock.seconds, "device": clock.device, "steps": steps})

    def _write(self, result: "_Result", log: str) -> None:
        cell = result.cell
        with self._store.cell(cell.folder).writing() as folder:
            write_rows(result.rows, folder / "records.parquet")
            if cell.schedule.is_sequential:
                curve(result.points, result.place).to_parquet(folder / "curve.parquet", index=False)
            if result.items:
                write_items(result.items, folder / scores.FILE)
            for name, content in (
                ("cell", cell.description()),
                ("metrics", result.metrics()),
                ("cost", result.cost),
                ("provenance", result.provenance),
            ):
                write_json(folder / f"{name}.json", content)
            (folder / "log.txt").write_text(log, encoding="utf-8")
            if result.kept:
                result.kept.write(folder / FILE)
        self._store.drop_checkpoint(cell.folder)

    def _edit_and_evaluate(self, cell: Cell) -> "_Result":
        started = datetime.now(UTC)
        context, needed = self._context, cell.artifacts()
        for root in (*cell.all_unedited_outputs(), *cell.unedited_capability()):
            for spec in root.closure():
                verify_models(spec, self._store, context)
        bench, data = Bench.of(cell, self._store, context), context.load_data(cell.data)
        model, chosen = bench.model, bench.chosen
        is_kept = cell.keep_weights and cell.method.edits and cell.method.is_in_weights
        kept = KeptWeights(model.model) if is_kept else None
        before = weight_hash(model.model)
        sizes = norms(model.model) if cell.fluency else {}
        shared = [spec.key for spec in needed.values() if spec.kind == "edit"]
        is_warm = not shared and self._warm_up(bench, data)
        reset_peak_memory(context.device)
        requests = [record.request() for record in data.edits]
        edited = (self._in_sequence if cell.schedule.is_sequential else self._at_once)(bench, requests, kept, sizes)
        peak_bytes = peak_memory_bytes(context.device)
        flops, failures = self._flops(bench)  # now that everything is timed, and before the weights are compared
        remarks = (*edited.remarks, *failures)
        if weight_hash(model.model) != before:
            raise RuntimeError(f"{cell.label} did not give the model back bit for bit")

        cost = {
            "phases_s": add_phases(edited.phases_s, self._artifacts.phases_s(needed.values())),
            "edits": len(data.edits),
            "edit_actions": (shared or edited.acts) if cell.method.edits else [],
            "device": context.device,
            "device_class": device_class(context.device),
            "threads": torch.get_num_threads(),
            "peak_memory_bytes": peak_bytes,
            "warm_up": is_warm,
            "citable": True,
            **({"flops": flops} if flops else {}),
            **edited.cost,
        }
        origin = {
            **provenance.environment(),
            "started": started.isoformat(),
            "finished": datetime.now(UTC).isoformat(),
            "data_files": data_files(cell.data),
            "references": references(cell),
            "artifacts": {role: spec.key for role, spec in needed.items()},
            "weights": before,
            "tokenizer": model.framing,
            "ambiguous_subjects": ambiguous(model.tokenizer, requests),
            "models": [
                {"name": ref.name, "source": ref.source, "revision": ref.revision, **context.model_hashes(ref)}
                for ref in models_of(cell)
            ],
            **({"same_subject": groups} if (groups := same_subject((*data.edits, *data.unrelated))) else {}),
            **({"chosen": dict(chosen)} if chosen else {}),
            **bench.method.provenance(),
            **({"remarks": list(remarks)} if remarks else {}),
            **edited.origin,
        }
        place = {record.id: number for number, record in enumerate(data.edits, 1)}
        limits = self._attainable(cell, model, data)
        return _Result(
            *(cell, edited.points, place, edited.diagnostics, cost, origin, remarks, kept, limits, edited.classic),
            *(edited.fluency, self._with_unedited(cell, edited.items)),
        )

    def _warm_up(self, bench: Bench, data: Dataset) -> bool:
        """Edit another fact and discard it, so that first calls are not timed.

        Where the edit is an artifact, its builder has done so, and only what a cell adds to it is timed here.

        Returns:
            Whether it was made: not without another fact, nor where the method refuses it, which says nothing of the others.
        """
        if not bench.cell.method.edits or not data.train:
            return False
        try:
            bench.method.edit(bench.model, [data.train[0].request()], bench.folders, self._context).revert()
        except UserError:
            return False
        return True

    def _at_once(
        self, bench: Bench, requests: Sequence[EditRequest], kept: KeptWeights | None, sizes: Mapping[str, float]
    ) -> "_Edited":
        """All edits in one act, and their scores."""
        cell, context = bench.cell, self._context
        clock = context.restart(cell.seed)
        edited = bench.method.edit(bench.model, requests, bench.folders, context)
        try:
            if kept:
                kept.take()
            rows = self._evaluate(cell, edited, bench.model, len(requests))
            classic, lacks = self._classic(cell, edited, bench.model)
            fluency, unsaid = self._fluency(cell, edited, bench.model, sizes)
            items, misses = self._capability(cell, edited, bench.model)
            diagnostics, remarks = dict(edited.diagnostics()), (*edited.remarks(), *lacks, *unsaid, *misses)
        finally:
            edited.revert()
        return _Edited(
            *({len(requests): rows}, diagnostics, clock.seconds, [cell.cell_id], remarks, classic),
            fluency=fluency,
            items={len(requests): items},
        )

    def _in_sequence(
        self, bench: Bench, requests: Sequence[EditRequest], kept: KeptWeights | None, sizes: Mapping[str, float]
    ) -> "_Edited":
        """Block after block, from where an earlier run was interrupted; times of two runs together are not citable."""
        cell, context = bench.cell, self._context
        sequence = SequenceRun(
            Checkpoint(self._store.checkpoint(cell.folder)),
            context,
            cell.seed,
            lambda edited, edits: (
                self._evaluate(cell, edited, bench.model, edits),
                *self._capability(cell, edited, bench.model),
            ),
        )
        with Chain(bench.method, bench.model, bench.folders, context) as chain:
            done = sequence.run(chain, requests, cell.schedule)
            if kept:
                kept.take()
            classic, lacks = self._classic(cell, chain.edited, bench.model)
            fluency, unsaid = self._fluency(cell, chain.edited, bench.model, sizes)
            misses = dict.fromkeys(remark for point in done.points.values() for remark in point.remarks)
            remarks = (*chain.edited.remarks(), *lacks, *unsaid, *misses)
        blocks, points = done.progress.blocks, done.points
        return _Edited(
            {edits: point.rows for edits, point in points.items()},
            done.progress.diagnostics,
            add_phases(*(block.phases_s for block in blocks), *(point.phases_s for point in points.values())),
            [f"{cell.cell_id}:{block.edits}" for block in blocks],
            remarks,
            classic,
            {"blocks": [asdict(block) for block in blocks], "citable": not done.progress.resumed},
            {"resumed": list(done.progress.resumed)},
            fluency,
            {edits: point.items for edits, point in points.items()},
        )

    def _evaluate(self, cell: Cell, edited: EditedModel, model: LoadedModel, edits: int) -> list[Answer]:
        """All rows of a cell after so many edits; none for random weights, whose answers mean nothing."""
        if cell.model.weights == "random":
            return []
        context = self._context
        data = context.load_data(cell.data_at(edits))
        protocols = _protocols(cell)
        unedited = UneditedOutputs.load(self._artifacts.folder(cell.unedited_outputs(edits)))
        total = question_count(data, len(protocols) + 1)  # once more for the scope
        with context.progress(f"evaluating {cell.label}", total) as advance, context.clock.phase("evaluate"):
            return evaluate(
                *(edited, data, model.tokenizer, protocols, cell.eval_batch, unedited, advance),
                positions=model.positions,
            )

    def _flops(self, bench: Bench) -> tuple[Mapping[str, Any], Sequence[str]]:
        """FLOPs of a cell, and a remark if they could not be counted: results that took hours are not given up for that."""
        cell = bench.cell
        if not cell.count_flops:
            return {}, ()
        if bench.method.uncounted:
            return {"uncounted": bench.method.uncounted}, ()
        counter = CellCounter(self._store, self._context, cell, bench.method, bench.model, bench.folders)
        try:
            return counter.count(_protocols(cell)), ()
        except Exception as error:
            print(traceback.format_exc(), file=sys.stderr)  # the cell's log
            return {"uncounted": _reason(error)}, (f"FLOPs are not known, because counting failed: {_reason(error)}",)

    def _classic(
        self, cell: Cell, edited: EditedModel, model: LoadedModel
    ) -> tuple[Mapping[str, float], tuple[str, ...]]:
        """CounterFact's metrics by probability if they are wanted, or a remark on why there are none."""
        if not cell.classic or cell.model.weights == "random":
            return {}, ()
        try:
            found = duels(edited, self._context.load_data(cell.data), model.tokenizer, cell.eval_batch)
        except UserError as error:
            return {}, (f"no probabilities of targets: {error.message}",)
        return classic_metrics(found), ()

    def _fluency(
        self, cell: Cell, edited: EditedModel, model: LoadedModel, sizes: Mapping[str, float]
    ) -> tuple[Mapping[str, float], tuple[str, ...]]:
        """Metrics of generated text and the growth of norms if they are wanted, or a remark on why there are none."""
        if not cell.fluency or cell.model.weights == "random":
            return {}, ()
        drift = {"norm_drift": norm_drift(sizes, norms(model.model))}
        try:
            data = self._context.load_data(cell.data)
            return {**fluency_metrics(edited, model, data, cell.fluency, cell.eval_batch), **drift}, ()
        except UserError as error:
            return drift, (f"no metrics of generated text: {error.message}",)

    def _capability(
        self, cell: Cell, edited: EditedModel, model: LoadedModel
    ) -> tuple[Sequence[ItemScore], Sequence[str]]:
        """Scores on the cell's benchmark tasks, which the unedited model has already, and a remark on each that has none."""
        if cell.model.weights == "random" or not cell.capability:
            return (), ()
        if not cell.method.edits:
            return self._unedited_items(cell), ()
        items, remarks = list[ItemScore](), list[str]()
        with self._context.progress(f"capability of {cell.label}", len(cell.capability)) as advance:
            for task in cell.capability:
                try:
                    items += scores.ask(edited, model, task, cell.eval_batch)
                except UserError as error:
                    remarks.append(f"no scores on {task.title}: {error.message}")
                advance()
        return items, remarks

    def _unedited_items(self, cell: Cell) -> list[ItemScore]:
        folders = map(self._artifacts.folder, cell.unedited_capability())
        return [one for folder in folders for one in scores.read(folder)]

    def _with_unedited(self, cell: Cell, items: Mapping[int, Sequence[ItemScore]]) -> Mapping[int, Sequence[ItemScore]]:
        """Scores on benchmark tasks by the number of edits so far, with those of the unedited model."""
        return {0: self._unedited_items(cell), **items} if cell.unedited_capability() else {}

    def _attainable(self, cell: Cell, model: LoadedModel, data: Dataset) -> Mapping[str, Mapping[str, float]]:
        """Scores that no model with all edits can exceed; nothing to say of the unedited model, or without answers."""
        if cell.model.weights == "random" or not cell.method.edits:
            return {}
        unedited = UneditedOutputs.load(self._artifacts.folder(cell.unedited_outputs(len(data.edits))))
        return attainable(data, model.tokenizer, _protocols(cell), unedited)


def _protocols(cell: Cell) -> list[Protocol]:
    """The protocols of a cell, in the form used for its method."""
    return [registry.protocols.get(name).of(cell.method) for name in cell.protocols]


def _reason(error: Exception) -> str:
    """One line: what a user can fix, or the name of a bug, whose traceback is in the log."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


@dataclass(frozen=True, slots=True)
class _Edited:
    """What came of the edits of a cell.

    Attributes:
        points: answers by the number of edits so far; only those after the last edit, if all were one act.
        acts: ids of the edit runs.
        remarks: see `EditedModel.remarks`.
        classic: see `harness.evaluation.classic`.
        cost, origin: what else is to be said of cost and provenance.
        fluency: see `harness.evaluation.fluency`.
        items: scores on benchmark tasks by the number of edits so far.
    """

    points: Mapping[int, Sequence[Answer]]
    diagnostics: Mapping[str, float]
    phases_s: dict[str, float]
    acts: list[str]
    remarks: tuple[str, ...] = ()
    classic: Mapping[str, float] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    fluency: Mapping[str, float] = field(default_factory=dict)
    items: Mapping[int, Sequence[ItemScore]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Result:
    """What is written for a cell.

    Attributes:
        place: number of each record's edit, from 1.
        remarks: see `EditedModel.remarks`.
        kept: the edited weights.
        attainable: see `harness.evaluation.attainable`, for the records after the last edit.
        items: scores on benchmark tasks by the number of edits so far, from 0.
    """

    cell: Cell
    points: Mapping[int, Sequence[Answer]]
    place: Mapping[str, int]
    diagnostics: Mapping[str, float]
    cost: Mapping[str, Any]
    provenance: Mapping[str, Any]
    remarks: tuple[str, ...]
    kept: KeptWeights | None
    attainable: Mapping[str, Mapping[str, float]]
    classic: Mapping[str, float]
    fluency: Mapping[str, float]
    items: Mapping[int, Sequence[ItemScore]]

    @property
    def rows(self) -> Sequence[Answer]:
        """Answers after the last edit."""
        return self.points[max(self.points)]

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json: after the last edit, and along a sequence."""
        metrics: dict[str, Any] = {**aggregate(self.rows), "diagnostics": self.diagnostics}
        if scope := scope_metrics(self.rows):
            metrics["scope"] = scope
        if self.classic:
            metrics["classic"] = self.classic
        if self.fluency:
            metrics["fluency"] = self.fluency
        if self.items:
            metrics["capability"] = {str(edits): scores.means(items) for edits, items in self.items.items()}
        if self.attainable:
            metrics["attainable"] = self.attainable
        if self.cell.schedule.is_sequential and self.rows:
            metrics["curve"] = curve_metrics(self.points, self.place)
        return metrics
