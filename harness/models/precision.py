"""Half precision is for models: what is optimised, summed or compared is at least fp32."""

import torch
from torch import Tensor


def at_least_fp32(values: Tensor) -> Tensor:
    """Half precision as fp32; fp32 and fp64 as they are."""
    return values.to(working_dtype(values))


def working_dtype(values: Tensor) -> torch.dtype:
    """The type that `at_least_fp32` gives them."""
    return torch.promote_types(values.dtype, torch.float32)
