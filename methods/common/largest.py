"""The largest entries of a tensor."""

from torch import Tensor


def smallest_of_largest(values: Tensor, kept: int) -> Tensor:
    """The smallest of the `kept` largest entries, from which on entries are kept; those tied with it are too.

    Not `kthvalue`: before torch 2.10 it has no deterministic CUDA kernel and raises when one is required.
    """
    return values.flatten().topk(kept, sorted=False).values.min()
