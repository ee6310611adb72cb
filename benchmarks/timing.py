"""Measure time and memory of candidates that take turns in one process, so that other load affects all of them equally."""

import math
import os
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # silences the profiler; read when it first starts

Result = TypeVar("Result")

WARM_UPS = 3
"""Untimed rounds, in which memory is tracked; slow candidates have one."""


@dataclass(frozen=True)
class Candidate:
    """Something to measure.

    Attributes:
        name: name in the table.
        run: runs one repetition, given the round number; all candidates of a round use the same input.
        every: takes part only in every n-th round, for slow candidates.
    """

    name: str
    run: Callable[[int], Any]
    every: int = 1


@dataclass(frozen=True)
class Measured:
    """Times and results of a candidate.

    Attributes:
        seconds: time of each repetition, by round.
        results: return value of each repetition, by round.
        peak_bytes: maximum additional memory in a warm-up round; None if memory was not tracked.
    """

    seconds: dict[int, float]
    results: dict[int, Any]
    peak_bytes: int | None

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds.values())

    @property
    def mean(self) -> float:
        """Mean of the seconds; unlike the median, it reflects rare slow rounds."""
        return statistics.fmean(self.seconds.values())

    def summary(self) -> dict[str, Any]:
        """Times and memory, for the JSON file."""
        ordered = sorted(self.seconds.values())
        return {
            "median_s": self.median,
            "mean_s": self.mean,
            "low_s": ordered[len(ordered) // 10],
            "high_s": ordered[-1 - len(ordered) // 10],
            "repeats": len(ordered),
            "peak_bytes": self.peak_bytes,
        }


def taking_turns(
    candidates: Sequence[Candidate], rounds: int, device: torch.device, *, tracks_memory: bool = True
) -> dict[str, Measured]:
    """Warm up all candidates, then run them `rounds` times, in random order within each round."""
    order = random.Random(0)
    made: dict[str, Measured] = {}
    for candidate in candidates:
        peaks = []
        for turn in range(WARM_UPS if candidate.every == 1 else 1):
            run = partial(candidate.run, turn)
            if tracks_memory:
                peaks.append(peak_bytes(run, device)[1])
            else:
                run()
        made[candidate.name] = Measured({}, {}, max(peaks, default=None))
    for turn in range(rounds):
        taking_part = [candidate for candidate in candidates if turn % candidate.every == 0]
        for candidate in order.sample(taking_part, len(taking_part)):
            seconds, result = timed(partial(candidate.run, turn), device)
            made[candidate.name].seconds[turn] = seconds
            made[candidate.name].results[turn] = result
    return made


def timed(run: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """Seconds of a run and its result; synchronises with the device before and after."""
    _synchronise(device)
    start = time.perf_counter()
    result = run()
    _synchronise(device)
    return time.perf_counter() - start, result


def peak_bytes(run: Callable[[], Result], device: torch.device) -> tuple[Result, int]:
    """The result of a run and its peak additional memory in bytes.

    On the CPU, the allocator's profiling events are summed, including kernels' buffers, which slows down the run.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = run()
        torch.cuda.synchronize(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as observed:
        result = run()
    events = observed.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return result, max(accumulate((change for _, change in changes), initial=0))


def free_bytes(device: torch.device) -> float:
    """Available memory in bytes; infinite if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return math.inf
    kilobytes = next(
        line.split()[1] for line in meminfo.read_text(encoding="utf-8").splitlines() if line.startswith("MemAvailable")
    )
    return int(kilobytes) * 1024


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
