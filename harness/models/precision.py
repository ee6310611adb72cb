"""Working precision: models may run in half precision, but values that are optimised, summed or compared are at least fp32."""

import torch
from torch import Tensor


def at_least_fp32(values: Tensor) -> Tensor:
    """Convert half precision to fp32; leave fp32 and fp64 unchanged."""
    return values.to(working_dtype(values))


def working_dtype(values: Tensor) -> torch.dtype:
    """The dtype that `at_least_fp32` converts to."""
    return torch.promote_types(values.dtype, torch.float32)
