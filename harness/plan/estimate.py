"""Rough memory and time of cells and artifacts: for `harness plan`, and for the resources that a scheduler is asked for."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.api import TOKENS_PER_PASS, ArtifactSpec
from harness.models import catalogue
from harness.plan.cell import Cell, models_of
from harness.records import DataRef

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.models.spec import ModelSpec
    from harness.plan.job import Job

CPU_FLOPS = 2.5e11
"""Rough throughput of two quiet cores on small matrices."""
CUDA_FLOPS = 5e13
"""Rough throughput of one A100 on small batches."""
STEP_S = 0.007
"""Least time of an optimiser step, however small the model: it starts hundreds of kernels, forward and backward."""
START_S = 2
"""Least time of a job that uses a model: to load or hash it and to write the results."""
QUESTIONS_PER_EDIT = 14
EPOCHS = 100
"""Training passes over its records that an artifact is assumed to take that does not say how many it takes."""
LIBRARIES_BYTES = 2**30
"""Memory of a process that has imported everything and loaded no model."""
IMPORTS_S = 20
"""From the start of a process to its first model, with a busy file system."""
READING_BYTES_PER_S = 2e8
"""Throughput of such a file system."""
SPARE = 6
"""A batch is given this many times its estimated time, which knows neither the method nor the machine."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Rough needs of a job, or of several that run one after the other in one process.

    Attributes:
        memory_bytes: of the process and its children; of the node, not of a GPU.
        seconds: wall-clock time.
    """

    memory_bytes: int
    seconds: float


def of_cell(cell: Cell, device: str) -> Resources:
    """Each copy of the target model in a process with the libraries, and the other models that artifacts bring along.

    Time is that of the passes and steps per edit that the method's hyper-parameters state, and of one pass per question
    and protocol.
    """
    target, *others = models_of(cell)
    method, edits = cell.planned_method, cell.data.edits if cell.method.edits else 0
    memory = method.memory_copies * (_loaded_bytes(target) + LIBRARIES_BYTES) + sum(map(_loaded_bytes, others))
    questions = QUESTIONS_PER_EDIT * len(cell.protocols) * sum(cell.schedule.points(cell.data.edits))
    passes_s = _passes_s([target.spec], method.hparams.passes_per_edit * edits, device)
    questions_s = _passes_s([model.spec for model in (target, *others)], questions, device)
    return Resources(memory, START_S + passes_s + questions_s + STEP_S * method.hparams.steps_per_edit * edits)


def of_artifact(spec: ArtifactSpec, device: str) -> Resources:
    """The models it loads, four times the weights of one that it trains, and the passes through them that it states."""
    loaded, trained = models_of(spec), _trained(spec)
    memory = LIBRARIES_BYTES + sum(map(_loaded_bytes, loaded)) + 4 * sum(_bytes(model, None) for model in trained)
    passes = spec.passes
    if passes is None:
        records = sum(ref.edits + ref.train + ref.unrelated for ref in spec.inputs.values() if isinstance(ref, DataRef))
        passes = 3 * EPOCHS * records
    models = [*trained, *(ref.spec for ref in loaded)]
    return Resources(memory, (START_S if models else 0) + _passes_s(models, passes, device))


def together(jobs: Sequence["Job"]) -> Resources:
    """Jobs that run one after the other in one process: memory of the largest; time of all with much to spare, start included."""
    models = {model for job in jobs for model in job.models}
    reading_s = sum(map(_loaded_bytes, models)) / READING_BYTES_PER_S
    return Resources(
        max(job.resources.memory_bytes for job in jobs),
        IMPORTS_S + reading_s + SPARE * sum(job.resources.seconds for job in jobs),
    )


def duration(length_s: float) -> str:
    """A length of time for people: `12 s`, `3 min`, `2 h 05`."""
    minutes, rest = divmod(int(length_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d}" if hours else f"{minutes} min" if minutes else f"{rest} s"


def _passes_s(models: Iterable["ModelSpec"], passes: float, device: str) -> float:
    """Time of so many forward passes of one prompt through each of these models."""
    parameters = sum(model.parameters for model in models)
    return 2 * parameters * TOKENS_PER_PASS * passes / (CUDA_FLOPS if device == "cuda" else CPU_FLOPS)


def _loaded_bytes(model: "ModelRef") -> int:
    return _bytes(model.spec, model.dtype)


def _bytes(model: "ModelSpec", dtype: str | None) -> int:
    """Weights, and a fifth more for activations and caches."""
    return int(1.2 * model.memory_bytes(dtype))


def _trained(spec: ArtifactSpec) -> "list[ModelSpec]":
    """The models that an artifact trains: one that stands in for a pretrained model says which in `inputs`."""
    return [
        catalogue.entry(name).spec
        for role, name in spec.inputs.items()
        if (spec.kind, role) == ("model", "model") and isinstance(name, str)
    ]
