"""Matrix products in single precision, by the faster of two libraries that torch contains.

On x86 torch multiplies by MKL, which uses AVX-512 on Intel's processors only. oneDNN uses it on all: on AMD's a large
product takes half the time, in the same precision.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

# The least size of every dimension for which oneDNN's call and the copy of its result are worth it.
LEAST = 512
# Columns copied at a time, of a matrix with gaps between its rows.
PANEL = 512


def product(a: Tensor, b: Tensor, least: int = LEAST) -> Tensor:
    """Return ``a @ b`` of two matrices; only the last bits depend on the library.

    A caller that knows its matrices gives another ``least``, as ``is_large`` takes it.
    """
    fast = _onednn()
    if fast is None or not is_large(a, b, least):
        return a @ b
    if b.is_contiguous() or b.T.is_contiguous():
        return fast(a, b.T)
    result = a.new_empty(a.shape[0], b.shape[1])
    for columns, part in zip(result.split(PANEL, dim=1), b.split(PANEL, dim=1), strict=True):
        # With gaps between its rows, oneDNN multiplies by a reference implementation, hundreds of times as slow.
        columns.copy_(fast(a, part.contiguous().T))
    return result


def is_large(a: Tensor, b: Tensor, least: int = LEAST) -> bool:
    """Return True if ``product`` of these leaves torch's default for oneDNN, which prefers its operands contiguous.

    Every dimension is to be ``least`` or more.
    """
    return min(*a.shape, b.shape[1]) >= least and _is_plain(a) and _is_plain(b) and _onednn() is not None


def _is_plain(matrix: Tensor) -> bool:
    # The operator has no derivative, so leave matrices that need one to torch.
    return matrix.device.type == "cpu" and matrix.dtype is torch.float32 and not matrix.requires_grad


@cache
def _onednn() -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return ``(a, b) -> a @ b.T`` by oneDNN, or None if this torch or this processor has nothing to gain from it."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return None
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if operator is None:
        return None
    return lambda a, b: operator(a, b, None, "none", [], "")
