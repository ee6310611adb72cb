"""Everything that a cell asks its edited model: questions of its records, benchmark tasks, and further metrics at the end."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.api import EditedModel
from harness.errors import UserError
from harness.evaluation.attainable import attainable
from harness.evaluation.capability import scores
from harness.evaluation.classic import classic_metrics, duels
from harness.evaluation.evaluate import evaluate
from harness.evaluation.fluency import fluency_metrics, norm_drift, norms
from harness.evaluation.probes import question_count
from harness.evaluation.unedited import UneditedOutputs, answers
from harness.records import Answer, ItemScore
from harness.run.bench import Bench
from harness.run.checkpoint import Point
from harness.run.context import RunContext
from harness.run.cost import device_class
from harness.store.artifacts import ArtifactCache


@dataclass(frozen=True, slots=True)
class Further:
    """Metrics that are computed once, after the last edit.

    Attributes:
        metrics: by the name of their section in metrics.json: `classic`, `fluency`.
        remarks: why some that are wanted are missing.
    """

    metrics: Mapping[str, Mapping[str, float]]
    remarks: tuple[str, ...]


class Questions:
    """Everything that a cell asks. Models with random weights are asked nothing, because their answers mean nothing.

    Args:
        bench: what is asked, and of which method; its model is not edited yet.
        context: of the run; its clock counts the time of the answers.
        artifacts: what the unedited model has answered. If that was on another class of device, where rounding differs, it is
            asked for locality again: no edit may be blamed for an answer that the device changed.

    Attributes:
        remarks: on what the unedited model has answered on another class of device.
        capability_s: seconds that benchmark tasks have taken so far.

    Raises:
        UserError: if the reference texts of metrics of generated text are no longer those that were planned.
    """

    def __init__(self, bench: Bench, context: RunContext, artifacts: ArtifactCache) -> None:
        cell, model = bench.cell, bench.model
        self._cell, self._model, self._context, self._artifacts = cell, model, context, artifacts
        self._protocols = bench.protocols
        self._asks = cell.model.weights != "random"
        self._references = cell.fluency.texts() if cell.fluency and self._asks else {}
        self._norms = norms(model.model.named_parameters()) if cell.fluency else {}
        self._asked_again: dict[str, UneditedOutputs] = {}
        self.capability_s = 0.0
        remarks, here = list[str](), device_class(context.device)
        for spec in cell.all_unedited_outputs():
            if (there := artifacts.built_on(spec)) not in (here, None):
                self._asked_again[spec.key] = answers(spec, context)
                remarks.append(f"the unedited model was asked again for locality on {here}, after {there}")
        for spec in cell.unedited_capability() if cell.method.edits else ():
            if (there := artifacts.built_on(spec)) not in (here, None):
                remarks.append(f"benchmark tasks were asked before editing on {there}, and after it on {here}")
        self.remarks = tuple(dict.fromkeys(remarks))

    def ask(self, edited: EditedModel, edits: int) -> Point:
        """Everything that is asked of a model after this many edits."""
        rows = self._answers(edited, edits)
        items, remarks = self._items(edited)
        return Point(rows, self._context.clock.seconds, items, remarks)

    def further(self, edited: EditedModel) -> Further:
        """Compute the further metrics that the cell asks for, on a model with all edits."""
        cell, model = self._cell, self._model
        metrics: dict[str, Mapping[str, float]] = {}
        remarks: list[str] = []
        if not self._asks or not (cell.classic or cell.fluency):
            return Further(metrics, ())
        data = self._context.load_data(cell.data)
        if cell.classic:
            try:
                metrics["classic"] = classic_metrics(duels(edited, data, model.tokenizer, cell.eval_batch))
            except UserError as error:
                remarks.append(f"no probabilities of targets: {error.message}")
        if cell.fluency:
            of_texts: Mapping[str, float] = {}
            try:
                of_texts = fluency_metrics(edited, model, data, self._references, cell.eval_batch)
            except UserError as error:
                remarks.append(f"no metrics of generated text: {error.message}")
            drift = norm_drift(self._norms, norms(model.model.named_parameters()))
            metrics["fluency"] = {**of_texts, "norm_drift": drift}
        return Further(metrics, tuple(remarks))

    def attainable(self) -> Mapping[str, Mapping[str, float]]:
        """Scores that no model with all edits can exceed; empty for the unedited model, or without answers."""
        cell = self._cell
        if not self._asks or not cell.method.edits:
            return {}
        data = self._context.load_data(cell.data)
        return attainable(data, self._model.tokenizer, self._protocols, self._unedited(cell.data.edits))

    def unedited_items(self) -> list[ItemScore]:
        """Scores of the unedited model on the benchmark tasks."""
        folders = map(self._artifacts.folder, self._cell.unedited_capability())
        return [one for folder in folders for one in scores.read(folder)]

    def _unedited(self, edits: int) -> UneditedOutputs:
        spec = self._cell.unedited_outputs(edits)
        again = self._asked_again.get(spec.key)
        return UneditedOutputs.load(self._artifacts.folder(spec)) if again is None else again

    def _answers(self, edited: EditedModel, edits: int) -> list[Answer]:
        if not self._asks:
            return []
        cell, context, protocols = self._cell, self._context, self._protocols
        data = context.load_data(cell.data_at(edits))
        unedited = self._unedited(edits)
        total = question_count(data, len(protocols) + 1)  # once more for the scope
        with context.progress(f"evaluating {cell.label}", total) as advance, context.clock.phase("evaluate"):
            return evaluate(
                *(edited, data, self._model.tokenizer, protocols, cell.eval_batch, unedited, advance),
                positions=self._model.positions,
            )

    def _items(self, edited: EditedModel) -> tuple[Sequence[ItemScore], Sequence[str]]:
        """Scores on the benchmark tasks, which the unedited model has already, and a remark on each that has none."""
        cell = self._cell
        if not self._asks or not cell.capability:
            return (), ()
        if not cell.method.edits:
            return self.unedited_items(), ()
        items, remarks, start = list[ItemScore](), list[str](), time.perf_counter()
        with self._context.progress(f"capability of {cell.label}", len(cell.capability)) as advance:
            for task in cell.capability:
                try:
                    items += scores.ask(edited, self._model, task, cell.eval_batch)
                except UserError as error:
                    remarks.append(f"no scores on {task.title}: {error.message}")
                advance()
        self.capability_s += time.perf_counter() - start
        return items, remarks
