"""Time and memory of a cell: a synchronised clock over named phases, and the class of device that makes times comparable."""

import contextlib
import ctypes
import gc
import re
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from harness.api import Phase
from harness.store.provenance import processor

_FORGET_PEAK = "5"  # proc(5): resets the peak resident set of a process

PHASES: tuple[Phase, ...] = get_args(Phase)


class PhaseClock:
    """Adds up wall-clock seconds per phase; waits for the device at both ends, so that no kernel is charged elsewhere."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self._running: Phase | None = None

    @contextlib.contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count what runs inside towards `name`.

        Raises:
            RuntimeError: when phases nest: a second would be charged twice.
        """
        if self._running:
            raise RuntimeError(f"phase '{name}' inside phase '{self._running}'")
        self._running = name
        self._synchronise()
        start = time.perf_counter()
        try:
            yield
        finally:
            self._synchronise()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self._running = None

    def _synchronise(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            for device in _in_use(self.device):
                torch.cuda.synchronize(device)


def device_class(device: str, shared_by: int = 1) -> str:
    """What a time was measured on: times are only compared within one class.

    Args:
        device: of torch.
        shared_by: how many processes of a launch ran on it at the same time, which slow each other down.
    """
    import torch

    shared = f" (shared by {shared_by} processes)" if shared_by > 1 else ""
    if device.startswith("cuda"):
        return f"cuda: {torch.cuda.get_device_name(device)}{shared}"
    return f"cpu: {processor()} × {torch.get_num_threads()} threads{shared}"


def peak_memory_bytes(device: str) -> int:
    """Highest memory use since `reset_peak_memory`: of all GPUs in use where there are any, else of the process."""
    if device.startswith("cuda"):
        import torch

        return sum(int(torch.cuda.max_memory_allocated(each)) for each in _in_use(device))
    if sys.platform == "linux":
        kilobytes = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        if kilobytes:
            return int(kilobytes[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def held_memory_bytes(device: str) -> int:
    """Memory in use now: of all GPUs in use where there are any, else what the process holds in RAM; where only its peak is known,
    the peak.
    """
    if device.startswith("cuda"):
        import torch

        return sum(int(torch.cuda.memory_allocated(each)) for each in _in_use(device))
    if sys.platform != "linux":
        return peak_memory_bytes(device)
    _release_freed()
    _, resident, *_ = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(resident) * resource.getpagesize()


def reset_peak_memory(device: str, *, collect: bool = True) -> None:
    """Start a new measurement; only Linux can forget the peak of a process, elsewhere it grows from cell to cell.

    Args:
        device: of torch.
        collect: whether to look for garbage first, which takes tenths of a second.
    """
    if device.startswith("cuda"):
        import torch

        for each in _in_use(device):
            torch.cuda.reset_peak_memory_stats(each)
    elif sys.platform == "linux":
        _release_freed(collect=collect)
        with contextlib.suppress(OSError):  # some containers do not let a process write there
            Path("/proc/self/clear_refs").write_text(_FORGET_PEAK, encoding="ascii")


class PeakMemory:
    """Highest memory use of a job, and of a part of it.

    Args:
        device: of torch.
    """

    def __init__(self, device: str) -> None:
        self._device, self._earlier_bytes = device, 0

    @property
    def total_bytes(self) -> int:
        """Since the job began."""
        return max(self._earlier_bytes, self.part_bytes)

    @property
    def part_bytes(self) -> int:
        """Since the last part began; where the peak of a process cannot be forgotten, since its start."""
        return peak_memory_bytes(self._device)

    def begin(self) -> None:
        """Begin a job."""
        self._earlier_bytes = 0
        reset_peak_memory(self._device)

    def begin_part(self) -> None:
        """Begin a part of the job, without looking for garbage: `held_memory_bytes` at the end of the previous part has."""
        self._earlier_bytes = self.total_bytes
        reset_peak_memory(self._device, collect=False)


def _release_freed(*, collect: bool = True) -> None:
    """Give memory that is no longer used back to the system.

    glibc keeps it for later, gigabytes after a plug-in was trained, and it would count for the next cell.
    """
    if collect:
        gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # musl keeps little, and has no such function
        trim(0)


def _in_use(device: str) -> list[str]:
    """A GPU, and the others that parts of a model are on."""
    import torch

    own = torch.device(device).index or 0
    others = (n for n in range(torch.cuda.device_count()) if n != own and torch.cuda.memory_allocated(n))
    return [device, *(f"cuda:{n}" for n in others)]


def add_phases(*costs: dict[str, Any]) -> dict[str, float]:
    """Sum of the seconds of several phase tables."""
    return {name: sum(cost.get(name, 0.0) for cost in costs) for name in PHASES}
