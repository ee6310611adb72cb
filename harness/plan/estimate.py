"""Estimates of memory and time of cells and artifacts, for `harness plan` and for the resources requested from a scheduler.

Memory follows from the shapes of models and from what methods declare. Times are those of finished cells of the same method
and model where the store has some, otherwise numbers of operations at a throughput, measured or assumed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Literal

from harness.api import TOKENS_PER_PASS, ArtifactSpec
from harness.evaluation.capability.scores import PASSES_PER_ITEM, UNKNOWN_ITEMS
from harness.models import catalogue
from harness.plan.cell import Cell, models_of
from harness.plan.history import Finished, History
from harness.records import DataRef

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.spec import ModelSpec
    from harness.plan.job import Job

CPU_FLOPS = 2.5e11
"""Assumed throughput of two quiet cores on small matrices."""
CUDA_FLOPS = 1e14
"""Assumed throughput of one A100 in bfloat16 on small batches, a third of its peak."""
STEP_S = 0.007
"""Minimum time of an optimiser step, however small the model: it starts hundreds of kernels, forward and backward."""
START_S = 2
"""Minimum time of a job that uses a model: to load or hash it and to write the results."""
QUESTIONS_PER_EDIT = 14
EPOCHS = 100
"""Assumed number of training passes over the records for an artifact that does not give it."""
LIBRARIES_BYTES = 500 * 2**20
"""Memory of a process that has imported everything and loaded no model."""
CUDA_LIBRARIES_BYTES = 4 * 2**30
"""The same with CUDA's libraries, in the memory of the node."""
IMPORTS_S = 20
"""From the start of a process to its first model, with a busy file system."""
READING_BYTES_PER_S = 2e8
"""Throughput of such a file system."""

Basis = Literal["finished cells", "measured throughput", "assumed throughput"]
SPARE: Mapping[Basis, float] = {"finished cells": 2, "measured throughput": 4, "assumed throughput": 6}
"""A batch is given this many times its estimated time."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Estimated needs of a job, or of several that run one after the other in one process.

    Attributes:
        memory_bytes: of the process and its children, in the memory of the node.
        seconds: wall-clock time.
        gpu_bytes: in the memory of the GPU; 0 without one.
        basis: what the time follows from.
        parts: bytes by what takes them, phase by phase; those of an edit and of its evaluation do not exist together.
    """

    memory_bytes: int
    seconds: float
    gpu_bytes: int = 0
    basis: Basis = "assumed throughput"
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def of_cell(cell: Cell, device: str, history: History | None = None) -> Resources:
    """Memory of the target model, of what its method declares and of a batch of questions; time as the module says.

    Args:
        cell: the cell.
        device: `cpu` or `cuda`.
        history: the finished cells of the store.
    """
    need = cell.planned_method.memory(cell.model, cell.data, cell.eval_batch)
    answers = {"answers": cell.model.footprint.answering(cell.eval_batch), **need.evaluate}
    model = {"weights": cell.model.footprint.weights}
    parts = {"model": model, "kept": need.kept, "edit": need.edit, "evaluation": answers}
    seconds, basis = _cell_seconds(cell, device, history)
    return _resources(parts, need.processes, seconds, basis, device)


def of_artifact(spec: ArtifactSpec, device: str, history: History | None = None) -> Resources:
    """Memory of the models it loads and of what it declares; time of the passes through them and of the
    operations that it states.
    """
    loaded, trained = models_of(spec), _trained(spec)
    models = {ref.name: ref.footprint.weights for ref in loaded}
    passes = spec.passes
    if passes is None:
        records = sum(ref.edits + ref.train + ref.unrelated for ref in spec.inputs.values() if isinstance(ref, DataRef))
        passes = 3 * EPOCHS * records
    flops_per_s, basis = _throughput(loaded, device, history)
    flops = _flops(*(ref.spec for ref in loaded), *trained) * passes + spec.flops
    seconds = (START_S if loaded or trained else 0) + flops / flops_per_s
    return _resources({"model": models, "building": spec.memory}, 0, seconds, basis, device)


def together(jobs: Sequence["Job"]) -> Resources:
    """Needs of jobs that one process runs in turn: memory of the largest; time of all with a margin, start included."""
    models = {model for job in jobs for model in job.models}
    reading_s = sum(model.footprint.weights for model in models) / READING_BYTES_PER_S
    return Resources(
        max(job.resources.memory_bytes for job in jobs),
        IMPORTS_S + reading_s + sum(SPARE[job.resources.basis] * job.resources.seconds for job in jobs),
        max(job.resources.gpu_bytes for job in jobs),
    )


def duration(length_s: float) -> str:
    """A length of time for people: `12 s`, `3 min`, `2 h 05`."""
    minutes, rest = divmod(int(length_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d}" if hours else f"{minutes} min" if minutes else f"{rest} s"


def _resources(
    parts: Mapping[str, Mapping[str, float]], processes: int, seconds: float, basis: Basis, device: str
) -> Resources:
    """Everything in the memory of the node, or models and tensors in that of a GPU."""
    sums = {phase: sum(of_phase.values()) for phase, of_phase in parts.items()}
    one_of = [sums.pop(phase, 0.0) for phase in ("edit", "evaluation")]
    tensors = int(sum(sums.values()) + max(one_of))
    if device == "cpu":
        return Resources((1 + processes) * LIBRARIES_BYTES + tensors, seconds, 0, basis, parts)
    loaded = int(max(parts["model"].values(), default=0))  # a checkpoint is read into the memory of the node
    return Resources((1 + processes) * CUDA_LIBRARIES_BYTES + loaded, seconds, tensors, basis, parts)


def _cell_seconds(cell: Cell, device: str, history: History | None) -> tuple[float, Basis]:
    flops_per_s, basis = _throughput(models_of(cell)[:1], device, history)
    points = cell.schedule.points(cell.data.edits)
    counted_s = _counted_s(cell, cell.data.edits, len(cell.protocols), points, flops_per_s)
    items = sum(task.items or UNKNOWN_ITEMS for task in cell.capability)
    tasks_s = _flops(cell.model.spec) * PASSES_PER_ITEM * items * len(points) / flops_per_s
    if history and (finished := history.of(cell)):
        ratios = [
            each.seconds / _counted_s(cell, each.edits, each.protocols, each.points, flops_per_s) for each in finished
        ]
        return counted_s * median(ratios) + tasks_s, "finished cells"
    return counted_s + tasks_s, basis


def _counted_s(cell: Cell, edits: int, protocols: int, points: Sequence[int], flops_per_s: float) -> float:
    """Time of the passes and steps per edit that the method states, and of one pass per question, protocol and point."""
    edited, hparams = edits if cell.method.edits else 0, cell.planned_method.hparams
    share = hparams.share_of_blocks(cell.model.footprint.n_layers)
    passes = _flops(cell.model.spec) * hparams.passes_per_edit * share * edited
    questions = _flops(*(model.spec for model in models_of(cell))) * QUESTIONS_PER_EDIT * protocols * sum(points)
    seconds: float = START_S + (passes + questions) / flops_per_s + STEP_S * hparams.steps_per_edit * edited
    return seconds


def _throughput(models: Sequence["ModelRef"], device: str, history: History | None) -> tuple[float, Basis]:
    """Operations per second: the most that answering took on the first of these models, or what is assumed."""
    assumed = CUDA_FLOPS if device == "cuda" else CPU_FLOPS
    finished: list[Finished] = history.of_model(models[0]) if history and models else []
    measured = [
        _flops(models[0].spec) * QUESTIONS_PER_EDIT * each.protocols * sum(each.points) / each.evaluate_s
        for each in finished
        if each.evaluate_s
    ]
    return (max(measured), "measured throughput") if measured else (assumed, "assumed throughput")


def _flops(*models: "ModelSpec") -> float:
    """Operations of one forward pass of a prompt through each of these models."""
    return 2.0 * TOKENS_PER_PASS * sum(model.parameters for model in models)


def _trained(spec: ArtifactSpec) -> "list[ModelSpec]":
    """The models that an artifact trains: one that stands in for a pretrained model says which in `inputs`."""
    return [
        catalogue.entry(name).spec
        for role, name in spec.inputs.items()
        if (spec.kind, role) == ("model", "model") and isinstance(name, str)
    ]
