"""Run one job from start to end; for a cell: load, edit, evaluate, revert, write. Independent of method and launcher."""

import importlib
import io
import shutil
import sys
import time
import traceback
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from harness.api import ArtifactSpec
from harness.data.load import files as data_files
from harness.errors import InsufficientMemoryError, Memory, UserError
from harness.evaluation.capability import scores
from harness.evaluation.metrics import aggregate
from harness.evaluation.scope import scope_metrics
from harness.files import write_json
from harness.models.weights import FILE, KeptWeights, weight_hash
from harness.plan.cell import Cell, models_of
from harness.plan.job import Job
from harness.plan.recall import references
from harness.records import Answer, Dataset, EditRequest, ItemScore, same_subject
from harness.run.bench import Bench, models_by_role, verify_models
from harness.run.checkpoint import Checkpoint, Point
from harness.run.context import RunContext
from harness.run.cost import PhaseClock, add_phases, device_class
from harness.run.counting import CellCounter
from harness.run.outcome import Outcome, record_failure
from harness.run.questions import Further, Questions
from harness.run.sequence import Chain, SequenceRun, curve_metrics
from harness.store import provenance
from harness.store.artifacts import ArtifactCache
from harness.store.rows import curve, write_items, write_rows
from harness.store.store import DONE, Store
from harness.subjects import ambiguous


class Runner:
    """Runs the jobs of one process."""

    def __init__(self, store: Store, context: RunContext) -> None:
        self._store = store
        self._artifacts = ArtifactCache(store)
        self._context = context

    def run(self, job: Job, *, larger: Collection[Memory] = ()) -> Outcome:
        """Run a job whose needs are built, and write its folder, finished or failed.

        Args:
            job: what to run.
            larger: memories of which there is more elsewhere: a job that runs out of one of them has not failed.

        Raises:
            UserError: if the store cannot be written.
            InsufficientMemoryError: if the job runs out of a memory in `larger`; it is not settled.
        """
        start = time.perf_counter()
        log, result = io.StringIO(), None
        cell = job.work if isinstance(job.work, Cell) else None
        self._context.keep_models(job.models)
        clock = self._context.restart(job.seed)
        try:
            if isinstance(job.work, ArtifactSpec):
                self._build(job.work, clock)
            elif not self._store.scored(job.work.folder).is_done:
                with redirect_stderr(log):
                    result = self._edit_and_evaluate(job.work)
        except Exception as error:
            if (memory := _exhausted(error)) is not None and memory in larger:
                raise InsufficientMemoryError(_reason(error), memory) from error
            self._context.forget_models()
            reason = _reason(error)
            record_failure(self._store, job, reason, log.getvalue() + traceback.format_exc())
            return Outcome(time.perf_counter() - start, reason)
        if result is not None:
            with self._store.scored(result.cell.folder).writing() as folder:
                result.write(folder, log.getvalue())
        remarks = self._finish(cell) if cell else ()
        return Outcome(time.perf_counter() - start, remarks=remarks)

    def _build(self, spec: ArtifactSpec, clock: PhaseClock) -> None:
        module, _, function = spec.builder.partition(":")
        builder = getattr(importlib.import_module(module), function)
        self._context.peak_memory.begin()
        with self._store.artifact(spec.name, spec.key).writing() as folder:
            builder(spec, self._context, folder)
            peak_bytes = self._context.peak_memory.total_bytes
            models = {role: self._context.model_hashes(ref) for role, ref in models_by_role(spec).items()}
            made_with = {"models": models} if models else {}
            write_json(folder / "artifact.json", {**spec.description(), **made_with})
            cost = {
                "phases_s": clock.seconds,
                "device": clock.device,
                "hardware": device_class(clock.device),
                "device_class": self._context.device_class,
                "shared_by": self._context.shared_by,
                "peak_memory_bytes": peak_bytes,
                "steps": dict(self._context.steps),
            }
            write_json(folder / "cost.json", cost)

    def _finish(self, cell: Cell) -> tuple[str, ...]:
        """Count the FLOPs of a cell that is scored, which a kill cannot undo, and make its folder appear.

        Returns:
            The cell's remarks.
        """
        scored, log = self._store.scored(cell.folder), io.StringIO()
        with redirect_stderr(log):
            flops, failures = self._flops(cell)
        cost, origin = scored.read("cost.json"), scored.read("provenance.json")
        remarks = (*origin.get("remarks", ()), *failures)
        with self._store.cell(cell.folder).writing() as folder:
            shutil.copytree(scored.path, folder, ignore=shutil.ignore_patterns(DONE), dirs_exist_ok=True)
            write_json(folder / "cost.json", {**cost, **({"flops": flops} if flops else {})})
            write_json(folder / "provenance.json", {**origin, **({"remarks": list(remarks)} if remarks else {})})
            with (folder / "log.txt").open("a", encoding="utf-8") as file:
                file.write(log.getvalue())
        self._store.drop_checkpoint(cell.folder)
        return remarks

    def _edit_and_evaluate(self, cell: Cell) -> "_Result":
        started = datetime.now(UTC)
        context, needed = self._context, cell.artifacts()
        context.peak_memory.begin()
        for root in (*cell.all_unedited_outputs(), *cell.unedited_capability()):
            for spec in root.closure():
                verify_models(spec, self._store, context)
        bench, data = Bench.of(cell, self._store, context), context.load_data(cell.data)
        model, chosen = bench.model, bench.chosen
        is_kept = cell.keep_weights and cell.method.edits and cell.method.is_in_weights
        kept = KeptWeights(model.model) if is_kept else None
        before, sources = weight_hash(model.model), self._sources(cell)
        questions = Questions(bench, context, self._artifacts)
        shared = [spec.key for spec in needed.values() if spec.kind == "edit"]
        is_warm = not shared and self._warm_up(bench, data)
        requests = [record.request() for record in data.edits]
        edit = self._in_sequence if cell.schedule.is_sequential else self._at_once
        edited = edit(bench, questions, requests, kept)
        peak_bytes = context.peak_memory.total_bytes
        remarks = (*questions.remarks, *edited.remarks)
        if weight_hash(model.model) != before:
            raise RuntimeError(f"{cell.label} did not restore the model bit for bit")

        phases_s = add_phases(edited.phases_s, self._artifacts.phases_s(needed.values()))
        reusable_s = self._artifacts.reusable_phases_s(needed.values())
        cost = {
            "phases_s": phases_s,
            "attach_per_edit_run_s": phases_s["attach"] - reusable_s.get("attach", 0.0),
            "edits": len(data.edits),
            "edit_actions": (shared or edited.acts) if cell.method.edits else [],
            "device": context.device,
            "device_class": context.device_class,
            "device_classes": self._device_classes(edited, needed.values()),
            "shared_by": self._artifacts.shared_by(needed.values(), context.shared_by),
            "threads": torch.get_num_threads(),
            "peak_memory_bytes": peak_bytes,
            "peak_memory_with_artifacts_bytes": self._artifacts.peak_memory_bytes(needed.values(), peak_bytes),
            "warm_up": is_warm,
            "citable": True,
            **({"capability_s": questions.capability_s} if cell.capability else {}),
            **edited.cost,
        }
        origin = {
            **provenance.environment(),
            "started": started.isoformat(),
            "finished": datetime.now(UTC).isoformat(),
            **sources,
            "artifacts": {role: spec.key for role, spec in needed.items()},
            "weights": before,
            "tokenizer": model.framing,
            "ambiguous_subjects": ambiguous(model.tokenizer, requests),
            **({"same_subject": groups} if (groups := same_subject((*data.edits, *data.unrelated))) else {}),
            **({"chosen": dict(chosen)} if chosen else {}),
            **bench.method.provenance(),
            **({"remarks": list(remarks)} if remarks else {}),
            **edited.origin,
        }
        place = {record.id: number for number, record in enumerate(data.edits, 1)}
        items = {0: questions.unedited_items()} if cell.unedited_capability() else {}
        return _Result(cell, edited, place, items, cost, origin, kept, questions.attainable())

    def _sources(self, cell: Cell) -> dict[str, Any]:
        """Where a cell's records and models have been read from, with hashes; files may change while the cell runs."""
        return {
            "data_files": data_files(cell.data),
            "references": references(cell),
            "models": [
                {"name": ref.name, "source": ref.source, "revision": ref.revision, **self._context.model_hashes(ref)}
                for ref in models_of(cell)
            ],
        }

    def _device_classes(self, edited: "_Edited", needed: Iterable[ArtifactSpec]) -> dict[str, list[str]]:
        """What the seconds of each phase were measured on, here and wherever the artifacts were built."""
        own = self._context.device_class
        classes = self._artifacts.device_classes(needed, own)
        for phase, seconds in edited.phases_s.items():
            if seconds:
                classes.setdefault(phase, set()).add(own)
        return {phase: sorted(found) for phase, found in classes.items()}

    def _warm_up(self, bench: Bench, data: Dataset) -> bool:
        """Edit another fact and discard it, so that first calls are not timed.

        Where the edit is an artifact, its builder has done so, and only what a cell adds to it is timed here.

        Returns:
            Whether it was made: not without another fact, nor if the method refuses that one, which says nothing about the others.
        """
        if not bench.cell.method.edits or not data.train:
            return False
        try:
            bench.method.edit(bench.model, [data.train[0].request()], bench.folders, self._context).revert()
        except UserError:
            return False
        return True

    def _at_once(
        self, bench: Bench, questions: Questions, requests: Sequence[EditRequest], kept: KeptWeights | None
    ) -> "_Edited":
        """All edits in one act, and their scores."""
        cell, context = bench.cell, self._context
        clock = context.restart(cell.seed)
        edited = bench.method.edit(bench.model, requests, bench.folders, context)
        try:
            if kept:
                kept.take()
            points = {len(requests): questions.ask(edited, len(requests))}
            further = questions.further(edited)
            diagnostics, remarks = dict(edited.diagnostics()), edited.remarks()
        finally:
            edited.revert()
        return _Edited(points, further, diagnostics, clock.seconds, [cell.cell_id], remarks)

    def _in_sequence(
        self, bench: Bench, questions: Questions, requests: Sequence[EditRequest], kept: KeptWeights | None
    ) -> "_Edited":
        """Block after block, from where an earlier run was interrupted; times of two runs together are not citable."""
        cell, context = bench.cell, self._context
        sequence = SequenceRun(Checkpoint(self._store.checkpoint(cell.folder)), context, cell.seed, questions.ask)
        with Chain(bench.method, bench.model, bench.folders, context) as chain:
            done = sequence.run(chain, requests, cell.schedule)
            if kept:
                kept.take()
            further, remarks = questions.further(chain.edited), chain.edited.remarks()
        blocks, points = done.progress.blocks, done.points
        return _Edited(
            points,
            further,
            done.progress.diagnostics,
            add_phases(*(block.phases_s for block in blocks), *(point.phases_s for point in points.values())),
            [f"{cell.cell_id}:{block.edits}" for block in blocks],
            remarks,
            {"blocks": [asdict(block) for block in blocks], "citable": not done.progress.resumed},
            {"resumed": list(done.progress.resumed)},
        )

    def _flops(self, cell: Cell) -> tuple[Mapping[str, Any], Sequence[str]]:
        """FLOPs of a cell, and a remark if they could not be counted: a failure here does not discard results that took hours."""
        if not cell.count_flops:
            return {}, ()
        if uncounted := cell.planned_method.uncounted:
            return {"uncounted": uncounted}, ()
        try:
            bench = Bench.of(cell, self._store, self._context)
            return CellCounter(self._store, self._context, bench).count(), ()
        except Exception as error:
            self._context.forget_models()
            print(traceback.format_exc(), file=sys.stderr)  # the cell's log
            return {"uncounted": _reason(error)}, (f"FLOPs are not known, because counting failed: {_reason(error)}",)


def _exhausted(error: Exception) -> Memory | None:
    """The memory that a job has run out of, if that is why it failed."""
    if isinstance(error, InsufficientMemoryError):
        return error.memory
    return "GPU" if isinstance(error, torch.OutOfMemoryError) else None


def _reason(error: Exception) -> str:
    """One line: what a user can fix, or the name of a bug, whose traceback is in the log."""
    return str(error) if isinstance(error, UserError | InsufficientMemoryError) else f"{type(error).__name__}: {error}"


@dataclass(frozen=True, slots=True)
class _Edited:
    """What came of the edits of a cell.

    Attributes:
        points: what was asked, by the number of edits so far; only after the last edit, if all were one act.
        acts: ids of the edit runs.
        said: see `EditedModel.remarks`.
        cost, origin: what else is to be said of cost and provenance.
    """

    points: Mapping[int, Point]
    further: Further
    diagnostics: Mapping[str, float]
    phases_s: dict[str, float]
    acts: list[str]
    said: Sequence[str]
    cost: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The remarks of the model and its questions, each once."""
        of_points = (remark for point in self.points.values() for remark in point.remarks)
        return tuple(dict.fromkeys([*self.said, *self.further.remarks, *of_points]))


@dataclass(frozen=True, slots=True)
class _Result:
    """What is written for a cell before its FLOPs are counted.

    Attributes:
        place: number of each record's edit, from 1.
        unedited: scores of the unedited model on benchmark tasks, by the number of its edits: 0; empty without tasks.
        kept: the edited weights.
        attainable: see `harness.evaluation.attainable`, for the records after the last edit.
    """

    cell: Cell
    edited: _Edited
    place: Mapping[str, int]
    unedited: Mapping[int, Sequence[ItemScore]]
    cost: Mapping[str, Any]
    provenance: Mapping[str, Any]
    kept: KeptWeights | None
    attainable: Mapping[str, Mapping[str, float]]

    @property
    def points(self) -> Mapping[int, Sequence[Answer]]:
        """Answers by the number of edits so far."""
        return {edits: point.rows for edits, point in self.edited.points.items()}

    @property
    def rows(self) -> Sequence[Answer]:
        """Answers after the last edit."""
        return self.points[max(self.points)]

    @property
    def items(self) -> Mapping[int, Sequence[ItemScore]]:
        """Scores on benchmark tasks by the number of edits so far, from 0; empty without tasks."""
        if not self.unedited:
            return {}
        return {**self.unedited, **{edits: point.items for edits, point in self.edited.points.items()}}

    def metrics(self) -> dict[str, Any]:
        """The content of metrics.json: after the last edit, and along a sequence."""
        metrics: dict[str, Any] = {**aggregate(self.rows), "diagnostics": self.edited.diagnostics}
        if scope := scope_metrics(self.rows):
            metrics["scope"] = scope
        metrics |= {name: values for name, values in self.edited.further.metrics.items() if values}
        if self.items:
            metrics["capability"] = {str(edits): scores.means(items) for edits, items in self.items.items()}
        if self.attainable:
            metrics["attainable"] = self.attainable
        if self.cell.schedule.is_sequential and self.rows:
            metrics["curve"] = curve_metrics(self.points, self.place)
        return metrics

    def write(self, folder: Path, log: str) -> None:
        """Write all files, with what was printed to stderr."""
        write_rows(self.rows, folder / "records.parquet")
        if self.cell.schedule.is_sequential:
            curve(self.points, self.place).to_parquet(folder / "curve.parquet", index=False)
        if self.items:
            write_items(self.items, folder / scores.FILE)
        for name, content in (
            ("cell", self.cell.description()),
            ("metrics", self.metrics()),
            ("cost", self.cost),
            ("provenance", self.provenance),
        ):
            write_json(folder / f"{name}.json", content)
        (folder / "log.txt").write_text(log, encoding="utf-8")
        if self.kept:
            self.kept.write(folder / FILE)
