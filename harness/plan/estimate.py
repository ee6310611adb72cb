"""Rough estimates of the time and memory of cells and artifacts."""

from harness.models import catalogue
from harness.plan.cell import Cell

CPU_FLOPS = 1e11
"""Rough throughput of a few cores in small matrices, for estimates only."""


CUDA_FLOPS = 5e13
"""Rough throughput of one A100 in small batches, for estimates only."""


TOKENS_PER_PROMPT = 25


STEPS_PER_EDIT = 25


QUESTIONS_PER_EDIT = 14


def memory_bytes(cell: Cell) -> int:
    """Rough need of memory: weights, a fifth for activations and caches, and a gigabyte for the libraries.

    All of it twice for another backend, which has the model in a process of its own beside this one.
    """
    one_process = int(1.2 * catalogue.entry(cell.model.name).memory_bytes(cell.model.dtype)) + 2**30
    return one_process if cell.backend == "native" else 2 * one_process


def seconds(cell: Cell, device: str) -> float:
    """Rough time of a cell: 25 training steps per edit and 14 forward passes per edit that is scored."""
    forward = 2 * catalogue.entry(cell.model.name).parameters * TOKENS_PER_PROMPT
    edit = 3 * STEPS_PER_EDIT * cell.data.edits if cell.method.edits else 0
    asked = QUESTIONS_PER_EDIT * len(cell.protocols) * sum(cell.schedule.points(cell.data.edits))
    work = forward * (edit + asked)
    return 2 + work / (CUDA_FLOPS if device == "cuda" else CPU_FLOPS)


def duration(length_s: float) -> str:
    """A length of time as people say it: `12 s`, `3 min`, `2 h 05`."""
    minutes, rest = divmod(int(length_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d}" if hours else f"{minutes} min" if minutes else f"{rest} s"
