"""Buffer sizes: fixed on a CPU, a share of the device's memory on a GPU."""

from functools import cache

import torch


def buffer_bytes(device: torch.device, on_cpu: int, share: float) -> int:
    """Size limit of a buffer.

    It depends on the device's total memory rather than on what is free, so that the same cell on the same kind of device
    always takes the same path.

    Args:
        device: where the buffer is.
        on_cpu: limit on a CPU, and minimum on a GPU.
        share: share of a GPU's memory.
    """
    return max(on_cpu, int(share * _total_bytes(device))) if device.type == "cuda" else on_cpu


@cache
def _total_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory
