"""FLOPs of what runs inside a block, counted from the shapes of all matrix operations with the formulas of torch.

A multiplication and an addition are two FLOPs. Matrix products, attention and factorisations are counted; element-wise
operations, sums and look-ups are not, as usual. An operation that looks like one of the former but has no formula is an
error, because leaving it out silently would make a method look cheaper than it is. The counter slows down what it counts, so
no time is ever measured inside.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._C import DispatchKey
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from harness.api import Phase

_HEAVY = re.compile(
    r"(?<![a-z0-9])(?:mm|bmm|addmm|addbmm|baddbmm|matmul|mv|addmv|dot|vdot|ger|addr|einsum|linear|bilinear|trilinear|cdist"
    r"|linalg|cholesky|solve|spsolve|inverse|pinverse|lu|lstsq|svd|eig|qr|geqrf|orgqr|ormqr|attention|gru|lstm|rnn|fft"
    r"|conv|convolution|conv[123]d|conv2d3x3|depthwise[23]d)(?![a-z0-9])"
)
"""Words in the names of operations whose cost is more than a few FLOPs per element of what they read and write."""

_LIGHT = frozenset(
    f"aten.{name}"
    for name in ("linalg_vector_norm", "linalg_cross", "_linalg_check_errors", "linalg__powsum", "lu_unpack")
)
"""Exceptions: cheap operations with such a word."""

_Shape = Sequence[int]
Formula = Callable[..., int]


class UncountedError(Exception):
    """An operation that costs FLOPs has no formula."""


def _batch(shape: _Shape, matrix: int = 2) -> int:
    """Number of matrices."""
    return int(torch.Size(shape[: len(shape) - matrix]).numel())


def _cholesky(matrix_NN: _Shape, *_: object, **__: object) -> int:
    return _batch(matrix_NN) * matrix_NN[-1] ** 3 // 3


def _cholesky_solve(right_NK: _Shape, lower_NN: _Shape, *_: object, **__: object) -> int:
    return _batch(right_NK) * 2 * lower_NN[-1] ** 2 * right_NK[-1]


def _triangular(matrix_NN: _Shape, right_NK: _Shape, *_: object, **__: object) -> int:
    return _batch(right_NK) * right_NK[-2] * right_NK[-1] * matrix_NN[-1]


def _lu(matrix_MN: _Shape, *_: object, **__: object) -> int:
    long, short = max(matrix_MN[-2:]), min(matrix_MN[-2:])
    return _batch(matrix_MN) * (long * short**2 - short**3 // 3)


def _lu_solve(lu_NN: _Shape, _pivots: _Shape, right_NK: _Shape, *_: object, **__: object) -> int:
    return _batch(right_NK) * 2 * lu_NN[-1] ** 2 * right_NK[-1]


def _solve(matrix_NN: _Shape, right: _Shape, *_: object, **__: object) -> int:
    columns = right[-1] if len(right) == len(matrix_NN) else 1
    return _lu(matrix_NN) + _batch(matrix_NN) * 2 * matrix_NN[-1] ** 2 * columns


def _inverse(matrix_NN: _Shape, *_: object, **__: object) -> int:
    return _batch(matrix_NN) * 2 * matrix_NN[-1] ** 3


def _qr(matrix_MN: _Shape, *_: object, **__: object) -> int:
    long, short = max(matrix_MN[-2:]), min(matrix_MN[-2:])
    return _batch(matrix_MN) * 2 * (2 * long * short**2 - 2 * short**3 // 3)


def _svd(matrix_MN: _Shape, full_matrices: bool = False, compute_uv: bool = True, *_: object, **__: object) -> int:
    long, short = max(matrix_MN[-2:]), min(matrix_MN[-2:])
    each = 6 * long * short**2 + 20 * short**3 if compute_uv else 4 * long * short**2 - 4 * short**3 // 3
    return _batch(matrix_MN) * each


def _eigh(matrix_NN: _Shape, UPLO: str = "L", compute_v: bool = True, *_: object, **__: object) -> int:
    cube: int = matrix_NN[-1] ** 3
    return _batch(matrix_NN) * (9 * cube if compute_v else 4 * cube // 3)


def _cdist(left_PM: _Shape, right_RM: _Shape, *_: object, **__: object) -> int:
    return _batch(left_PM) * 3 * left_PM[-2] * right_RM[-2] * left_PM[-1]


def _mv(matrix_MN: _Shape, *_: object, **__: object) -> int:
    return 2 * matrix_MN[0] * matrix_MN[1]


def _addmv(_added: _Shape, matrix_MN: _Shape, *_: object, **__: object) -> int:
    return _mv(matrix_MN)


def _dot(vector_N: _Shape, *_: object, **__: object) -> int:
    return 2 * vector_N[0]


def _addr(_added: _Shape, left_M: _Shape, right_N: _Shape, *_: object, **__: object) -> int:
    return 2 * left_M[0] * right_N[0]


def _addmm(_added: _Shape, left_MN: _Shape, right_NK: _Shape, *_: object, **__: object) -> int:
    return _mv(left_MN) * right_NK[1]


def _baddbmm(_added: _Shape, left_BMN: _Shape, right_BNK: _Shape, *_: object, **__: object) -> int:
    return _batch(left_BMN) * _mv(left_BMN[1:]) * right_BNK[2]


def _attention(query: _Shape, key: _Shape, value: _Shape, *_: object, **__: object) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(gradient: _Shape, query: _Shape, key: _Shape, value: _Shape, *_: object, **__: object) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))  # type: ignore[no-untyped-call]


_aten = torch.ops.aten

FORMULAS: Mapping[Any, Formula] = {
    _aten.linalg_cholesky_ex: _cholesky,
    _aten.cholesky: _cholesky,
    _aten.cholesky_solve: _cholesky_solve,
    _aten.linalg_solve_triangular: _triangular,
    _aten.linalg_lu_factor_ex: _lu,
    _aten.linalg_lu_solve: _lu_solve,
    _aten._linalg_solve_ex: _solve,
    _aten.linalg_inv_ex: _inverse,
    _aten.linalg_qr: _qr,
    _aten._linalg_svd: _svd,
    _aten._linalg_eigh: _eigh,
    _aten._cdist_forward: _cdist,
    _aten._euclidean_dist: _cdist,
    _aten.mv: _mv,
    _aten.addmv: _addmv,
    _aten.addmv_: _addmv,
    _aten.dot: _dot,
    _aten.vdot: _dot,
    _aten.addr: _addr,
    _aten.addr_: _addr,
    _aten.addmm_: _addmm,
    _aten.baddbmm_: _baddbmm,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Formulas that torch lacks, from shapes: LAPACK's operation counts (Golub & Van Loan, Matrix Computations, 4th ed., tables
4.2.1, 5.2.1, 8.3.1 and 8.6.1). An extension adds its own with `torch.utils.flop_counter.register_flop_formula`."""


class FlopCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what runs inside `with FlopCounter() as counter`; `counter.flops` holds the sum so far.

    The formulas are those of torch's `FlopCounterMode` and `FORMULAS`. Its counts are the same, at a fraction of the time: it
    keeps no counts per module and looks an operation up once, where a decoding step runs hundreds of small ones.

    Raises:
        UncountedError: from inside the block, for an operation that has no formula.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops: int = 0
        self._known: dict[Any, Formula | None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count it; one that consists of others is run, and counted, as those."""
        if func not in self._known:
            self._known[func] = _formula(func)
        formula, kwargs = self._known[func], kwargs or {}
        if formula is _consists_of_others:
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if formula:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


def _formula(func: Any) -> Formula | None:
    """The formula of an operation, None for one that costs nothing.

    Raises:
        UncountedError: if it costs something, and has none.
    """
    name = func._overloadpacket
    if name in FORMULAS:
        return _from_shapes(FORMULAS[name])
    if name in flop_registry:
        known: Formula = flop_registry[name]
        return known
    if func.has_kernel_for_dispatch_key(DispatchKey.CompositeImplicitAutograd):
        return _consists_of_others
    if str(name) not in _LIGHT and _HEAVY.search(str(name)):
        raise UncountedError(f"{name} has no formula for its FLOPs (torch.utils.flop_counter.register_flop_formula)")
    return None


def _consists_of_others(*_: object, **__: object) -> int:
    raise AssertionError("what an operation consists of is counted")


def _from_shapes(formula: Formula) -> Formula:
    """Call a formula with shapes in place of tensors."""

    def of_tensors(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        args, kwargs = tree_map(_shape, (args, kwargs))
        return formula(*args, **kwargs)

    return of_tensors


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, torch.Tensor) else value


class FlopClock:
    """Adds up FLOPs per phase: what `PhaseClock` is for seconds.

    Attributes:
        flops: of each phase that has ended.
    """

    def __init__(self) -> None:
        self.flops: dict[str, int] = {}
        self.running: Phase | None = None
        self._counter = FlopCounter()

    @contextlib.contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count what runs inside towards `name`.

        Raises:
            UncountedError: see `FlopCounter`.
        """
        self.running = name
        try:
            with self._counter:
                yield
        finally:
            self.flops[name] = self.flops.get(name, 0) + self._counter.flops
            self._counter.flops = 0
            self.running = None

    @property
    def so_far(self) -> int:
        """FLOPs of the running phase."""
        return self._counter.flops
