"""The FLOPs of a cell: a pass of its own after everything is timed and scored, on a sample that stands for the whole.

What a method does per edit, per question or per training step costs nearly the same every time, so a few of them are counted
and multiplied; of edits that are trained together, all. Nothing that is counted is timed, and no result depends on it.
"""

import contextlib
import importlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.api import Advance, ArtifactSpec, EditedModel
from harness.evaluation.evaluate import evaluate
from harness.evaluation.probes import question_count
from harness.evaluation.unedited import UneditedOutputs
from harness.files import write_json
from harness.records import DataRef, Dataset, EditRequest
from harness.run.bench import Bench
from harness.run.context import RunContext
from harness.run.cost import PHASES
from harness.run.flops import FlopClock, FlopCounter
from harness.store.store import Folder, Store
from harness.tokens import Query, joint_queries

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.loaded import LoadedModel

STEPS = 6
"""Steps of an artifact's progress bar after which counting stops."""

NEW_TOKENS = 8
"""Number of tokens generated after the first one, to measure the cost of one more."""

FILE = "flops.json"
"""File in an artifact's folder with its FLOPs by phase, written by the first cell that charges them."""

Flops = dict[str, float]


class CellCounter:
    """Counts what one cell costs.

    Args:
        store: with the cell's artifacts.
        context: of the run; its clock is not touched.
        bench: what is counted, on `bench.cell.count_flops` edits; its model is unedited, and so again when `count` returns.
    """

    def __init__(self, store: Store, context: RunContext, bench: Bench) -> None:
        self._store, self._context, self._bench = store, context, bench
        self._cell, self._model = bench.cell, bench.model

    def count(self) -> dict[str, Any]:
        """The content of `flops` in cost.json; docs/timing.md says what each number is.

        Raises:
            UncountedError: if an operation has no formula.
        """
        cell, needed = self._cell, self._cell.artifacts()
        charged = {spec.key: spec for root in needed.values() for spec in root.closure() if spec.kind != "model"}
        total: Flops = add_flops(*(artifact_flops(self._store, self._context, spec) for spec in charged.values()))
        data = self._context.load_data(cell.data)
        is_shared = any(spec.kind == "edit" for spec in needed.values())
        if is_shared:  # it holds all requests, and attaching it costs the same for any number of them
            sample = data.edits
        elif self._bench.method.edits_together:
            sample = data.edits[: cell.schedule.blocks(len(data.edits))[0].stop]
        else:
            sample = data.edits[: cell.count_flops]
        asked = replace(data, edits=data.edits[: cell.count_flops], unrelated=data.unrelated[: cell.count_flops])
        requests = [record.request() for record in sample]
        sampled = SampledContext(self._context)
        edited = self._bench.method.edit(self._model, requests, self._bench.folders, sampled)
        try:
            own: Flops = dict(sampled.clock.flops)
            own["edit"] = own.get("edit", 0) * len(data.edits) / len(requests)
            own["evaluate"] = self._evaluating(edited, asked)
            prompt, token = self._generating(edited, [record.request() for record in asked.edits])
            formula = dict(edited.formula_flops())
        finally:
            edited.revert()
        total = add_flops(total, own)
        return {
            **{phase: round(flops) for phase, flops in total.items()},
            "per_edit": round(total["edit"] / len(data.edits)),
            "per_prompt": round(prompt),
            "per_token": round(token),
            "sample_edits": len(asked.edits),
            **({"formula": formula} if formula else {}),
        }

    def _evaluating(self, edited: EditedModel, sample: Dataset) -> float:
        """All questions at all points that are scored, from those of a sample; none for random weights."""
        cell, model = self._cell, self._model
        if cell.model.weights == "random":
            return 0.0
        unedited = UneditedOutputs.load(self._context.artifact(cell.unedited_outputs(cell.data.edits)))
        counter = FlopCounter()
        with counter:
            evaluate(
                *(edited, sample, model.tokenizer, self._bench.protocols, cell.eval_batch, unedited),
                positions=model.positions,
            )
        points = cell.schedule.points(cell.data.edits)
        questions = sum(question_count(self._context.load_data(cell.data_at(edits)), 1) for edits in points)
        return float(counter.flops * questions / question_count(sample, 1))

    def _generating(self, edited: EditedModel, requests: Sequence[EditRequest]) -> tuple[float, float]:
        """The prompts of some edits: up to the first token, and for each token after it; both per prompt."""
        queries = joint_queries(self._model.tokenizer, [(request.prompt, request.target_new) for request in requests])
        longest = max(len(query.prompt_ids) for query in queries)
        more = min(NEW_TOKENS, (self._model.positions or longest + 1 + NEW_TOKENS) - longest - 1)
        first, all_ = (_flops_of(edited, queries, 1 + tokens) for tokens in (0, more))
        return first / len(queries), (all_ - first) / len(queries) / more if more > 0 else 0.0


class SampledContext:
    """The `harness.api.Context` of what is counted: a run's, with a clock that counts FLOPs.

    Args:
        context: of the run.
        stop_after: steps of a progress bar after which `Enough` is raised; None to let everything end.
    """

    def __init__(self, context: RunContext, stop_after: int | None = None) -> None:
        self._context, self._stop_after = context, stop_after
        self.device, self.seed = context.device, context.seed
        self.clock = FlopClock()

    def load_model(self, ref: "ModelRef") -> "LoadedModel":
        """See `RunContext`."""
        return self._context.load_model(ref)

    def load_data(self, ref: DataRef) -> Dataset:
        """See `RunContext`."""
        return self._context.load_data(ref)

    def artifact(self, spec: ArtifactSpec) -> Path:
        """See `RunContext`."""
        return self._context.artifact(spec)

    @contextlib.contextmanager
    def progress(self, description: str, total: int) -> Iterator[Advance]:
        """Count steps without showing them."""
        calls, done, first = 0, 0, (0, 0)

        def advance(steps: int = 1) -> None:
            nonlocal calls, done, first
            calls, done = calls + 1, done + steps
            if calls == 1:
                first = (done, self.clock.so_far)
            elif calls == self._stop_after and self.clock.running:
                per_step = (self.clock.so_far - first[1]) / (done - first[0])
                raise Enough(description, self.clock.running, per_step, done, total)

        yield advance


class Enough(Exception):  # noqa: N818 (it ends what is counted, as StopIteration does)
    """Enough steps have been counted.

    Attributes:
        description: of the progress bar.
        phase: in which the steps are.
        per_step: FLOPs of each step after the first.
        done: steps so far.
        total: steps that were announced.
    """

    def __init__(self, description: str, phase: str, per_step: float, done: int, total: int) -> None:
        super().__init__(description)
        self.description, self.phase, self.per_step, self.done, self.total = description, phase, per_step, done, total


def artifact_flops(store: Store, context: RunContext, spec: ArtifactSpec) -> Mapping[str, float]:
    """FLOPs of building an artifact, by phase; counted once and kept in its folder.

    The builder runs again, into a folder that is thrown away, and is stopped after a few steps of its progress bar. The steps
    that are left cost the same; how many they were the timed build has noted, since training may end early.

    Raises:
        UncountedError: if an operation has no formula.
    """
    folder = store.artifact(spec.name, spec.key)
    if not (folder.path / FILE).is_file():
        write_json(folder.path / FILE, _counted_build(folder, context, spec))
    kept: Mapping[str, float] = folder.read(FILE)
    return kept


def _counted_build(folder: Folder, context: RunContext, spec: ArtifactSpec) -> Flops:
    module, _, function = spec.builder.partition(":")
    builder = getattr(importlib.import_module(module), function)
    sampled, left = SampledContext(context, STEPS), 0.0
    phase = ""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            builder(spec, sampled, Path(scratch))
        except Enough as stop:
            steps: Mapping[str, int] = folder.read("cost.json").get("steps", {})
            phase, left = stop.phase, stop.per_step * (steps.get(stop.description, stop.total) - stop.done)
    return {name: round(flops + (left if name == phase else 0)) for name, flops in sampled.clock.flops.items()}


def add_flops(*parts: Mapping[str, float]) -> Flops:
    """Sum by phase, with a zero for each phase without FLOPs."""
    return {phase: sum(part.get(phase, 0) for part in parts) for phase in PHASES}


def _flops_of(edited: EditedModel, queries: Iterable[Query], tokens: int) -> int:
    """FLOPs of continuing prompts by exactly this number of tokens.

    Not `generate`, which may write on where it gives its answers in other tokens than it has chosen.
    """
    asked = [replace(query, target_ids=(query.target_ids * tokens)[:tokens]) for query in queries]
    counter = FlopCounter()
    with counter:
        edited.generate_until(asked, lambda *_: False)
    return int(counter.flops)
