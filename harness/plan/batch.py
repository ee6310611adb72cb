"""Choose the number of questions per forward pass by memory: `eval_batch: auto`.

The number is part of a cell's identity, because the last bits of a matrix product depend on the batch, and all methods on a
model share it, because locality is measured against the unedited model's answers in the same batches. So it depends on the
model and on how much memory the device has, not on how much of it happens to be free or on the method.
"""

import subprocess
from functools import cache

from harness.errors import UserError
from harness.memory import Footprint, installed_bytes

MOST = 128
"""Beyond this number, more rows hardly save time."""
SHARE = 4
"""Share of the memory left by the weights that questions may use; methods and further models need the rest."""


def rows_that_fit(model: Footprint, memory_bytes: float) -> int:
    """The largest power of two, up to `MOST`, of questions that fit into a part of the memory left by the weights; at least 1.

    Args:
        model: the target model.
        memory_bytes: all memory of the device.
    """
    free, rows = (memory_bytes - model.weights) / SHARE, MOST
    while rows > 1 and model.answering(rows) > free:
        rows //= 2
    return rows


@cache
def device_memory(device: str) -> int:
    """Memory of this machine, or of the smallest of its GPUs, in bytes; found without torch.

    Raises:
        UserError: if the driver does not say.
    """
    if device == "cpu":
        return installed_bytes()
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True, encoding="utf-8").stdout
        return min(int(line) for line in said.split()) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError):
        raise UserError(
            "eval_batch: auto needs the memory of the GPU, which nvidia-smi does not say", fix="eval_batch: 16"
        ) from None
