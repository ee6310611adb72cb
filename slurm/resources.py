"""Which resource class a unit is given, by rough needs from the catalogue."""

from collections.abc import Sequence
from dataclasses import dataclass

from harness.models import catalogue
from harness.plan.estimate import CPU_FLOPS, CUDA_FLOPS, TOKENS_PER_PROMPT, memory_bytes, seconds
from harness.records import DataRef
from harness.run.task import BuildArtifact, RunCell, Task
from harness.run.work import Unit
from slurm.profile import ResourceClass, SlurmProfile

IMPORTS_S = 20
"""From a job's start to its first model, from a busy file system."""
READING_BYTES_PER_S = 2e8
"""Of weights, from such a file system."""
SPARE = 3
"""Work is given so many times its estimate, which knows neither the method nor the machine."""
PASSES = 100
"""Training passes over its records that an artifact is thought to take: a zoo model takes about as many, and a
hypernetwork; statistics take fewer."""


@dataclass(frozen=True, slots=True)
class Needs:
    """Rough needs of tasks that run one after the other in one process."""

    memory_bytes: int
    seconds: float


def needs(tasks: Sequence[Task], device: str) -> Needs:
    """Memory of the largest task; time of all with much to spare, and the start before them."""
    models = {model for task in tasks for model in task.models}
    reading_s = sum(_weights(model.name, model.dtype) for model in models) / READING_BYTES_PER_S
    return Needs(
        max(_memory_bytes(task) for task in tasks),
        IMPORTS_S + reading_s + SPARE * sum(_seconds(task, device) for task in tasks),
    )


def fits(tasks: Sequence[Task], device: str, resources: ResourceClass) -> bool:
    """Whether a class is large enough for tasks that run one after the other."""
    wanted = needs(tasks, device)
    return wanted.memory_bytes <= resources.mem_gb * 2**30 and wanted.seconds <= resources.time_min * 60


def choose(unit: Unit, profile: SlurmProfile) -> tuple[ResourceClass, str | None]:
    """The first class that is large enough for a unit; else the largest, with a note that says so."""
    for resources in profile.resources:
        if fits(unit.tasks, unit.device, resources):
            return resources, None
    largest, wanted = profile.resources[-1], needs(unit.tasks, unit.device)
    note = (
        f"{unit.name}: about {wanted.memory_bytes / 2**30:.0f} GiB and {wanted.seconds / 60:.0f} min are more than "
        f"class '{largest.name}' has ({largest.mem_gb} GiB, {largest.time_min} min); it is tried there"
    )
    return largest, note


def _memory_bytes(task: Task) -> int:
    """As the plan says of a cell; every further model that a task loads comes on top."""
    if isinstance(task, RunCell):
        return memory_bytes(task.cell) + sum(_weights(model.name, model.dtype) for model in task.models[1:])
    trained = [_weights(name, None) for name in _trained(task)]
    return 2**30 + sum(_weights(model.name, model.dtype) for model in task.models) + 4 * sum(trained)


def _seconds(task: Task, device: str) -> float:
    """As the plan says of a cell; an artifact goes over its records again and again."""
    if isinstance(task, RunCell):
        return seconds(task.cell, device)
    if not isinstance(task, BuildArtifact):
        raise TypeError(task)
    records = sum(
        value.edits + value.train + value.unrelated for value in task.spec.inputs.values() if isinstance(value, DataRef)
    )
    parameters = sum(catalogue.entry(name).parameters for name in [*_trained(task), *(m.name for m in task.models)])
    work = 3 * 2 * parameters * TOKENS_PER_PROMPT * PASSES * records
    return 2 + work / (CUDA_FLOPS if device == "cuda" else CPU_FLOPS)


def _weights(model: str, dtype: str | None) -> int:
    """Bytes of weights, a fifth more for activations and caches."""
    return int(1.2 * catalogue.entry(model).memory_bytes(dtype))


def _trained(task: Task) -> list[str]:
    """Models that an artifact names without loading them: it trains them."""
    inputs = task.spec.inputs.values() if isinstance(task, BuildArtifact) else ()
    return [value for value in inputs if isinstance(value, str) and value in catalogue.names()]
