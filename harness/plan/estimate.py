"""Rough memory and time of cells and artifacts: for `harness plan`, and for the resources that a scheduler is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness import registry
from harness.api import ArtifactSpec
from harness.models import catalogue
from harness.plan.cell import Cell, models_of
from harness.records import DataRef

if TYPE_CHECKING:
    from harness.models.catalogue import ModelRef
    from harness.plan.job import Job

CPU_FLOPS = 1e11
"""Rough throughput of a few cores on small matrices."""
CUDA_FLOPS = 5e13
"""Rough throughput of one A100 on small batches."""
TOKENS_PER_PROMPT = 25
STEPS_PER_EDIT = 25
QUESTIONS_PER_EDIT = 14
PASSES = 100
"""Training passes over its records that an artifact is assumed to take: about what tiny models and hypernetworks need;
statistics need fewer."""
LIBRARIES_BYTES = 2**30
"""Memory of a process that has imported everything and loaded no model."""
IMPORTS_S = 20
"""From the start of a process to its first model, with a busy file system."""
READING_BYTES_PER_S = 2e8
"""Throughput of such a file system."""
SPARE = 3
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

    Time is that of 25 training steps per edit and of 14 forward passes per edit that is scored.
    """
    target, *others = models_of(cell)
    copies = registry.find_method(cell.method.name, cell.backend).memory_copies
    memory = copies * (_loaded_bytes(target) + LIBRARIES_BYTES) + sum(map(_loaded_bytes, others))
    forward = 2 * catalogue.entry(target.name).parameters * TOKENS_PER_PROMPT
    edits = 3 * STEPS_PER_EDIT * cell.data.edits if cell.method.edits else 0
    questions = QUESTIONS_PER_EDIT * len(cell.protocols) * sum(cell.schedule.points(cell.data.edits))
    return Resources(memory, _seconds(forward * (edits + questions), device))


def of_artifact(spec: ArtifactSpec, device: str) -> Resources:
    """The models it loads, four times the weights of one that it trains, and many passes over its records."""
    loaded, trained = models_of(spec), _trained(spec)
    memory = LIBRARIES_BYTES + sum(map(_loaded_bytes, loaded)) + 4 * sum(_bytes(name, None) for name in trained)
    records = sum(ref.edits + ref.train + ref.unrelated for ref in spec.inputs.values() if isinstance(ref, DataRef))
    parameters = sum(catalogue.entry(name).parameters for name in [*trained, *(ref.name for ref in loaded)])
    return Resources(memory, _seconds(3 * 2 * parameters * TOKENS_PER_PROMPT * PASSES * records, device))


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


def _seconds(flops: float, device: str) -> float:
    return 2 + flops / (CUDA_FLOPS if device == "cuda" else CPU_FLOPS)


def _loaded_bytes(model: "ModelRef") -> int:
    return _bytes(model.name, model.dtype)


def _bytes(model: str, dtype: str | None) -> int:
    """Weights, and a fifth more for activations and caches."""
    return int(1.2 * catalogue.entry(model).memory_bytes(dtype))


def _trained(spec: ArtifactSpec) -> list[str]:
    """Names of the models that an artifact trains: one that stands in for a pretrained model says which in `inputs`."""
    return [
        name for role, name in spec.inputs.items() if (spec.kind, role) == ("model", "model") and isinstance(name, str)
    ]
