"""The inner loop of GPTQ: round a few columns in order, each corrected by the errors of those before it.

There is so little arithmetic per column that launching torch operators, some microseconds each, would dominate. On a
CPU, numba compiles the loop on first use and caches the result on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Rows processed together: their data for 32 columns fits a core's L1 cache.
LANES = 256


def round_columns(
    W: Tensor, X: Tensor, Q: Tensor, T: Tensor, scale: Tensor, zero: Tensor, group: Tensor, max_code: int
) -> None:
    """Round ``c`` columns of ``r`` rows in place; columns are rows of the tensors.

    ``W`` ``[c, r]`` is the weight. ``X`` ``[c, r]`` holds the corrections so far and receives the errors; ``Q`` ``[c,
    r]`` uint8 receives the codes. Column ``k`` is further corrected by ``sum_j<k T[k, j] X[j]``, the errors before it.
    Its grid is row ``group[k]`` of ``scale`` and ``zero`` ``[G, r]``, with codes from 0 to ``max_code``.
    """
    compiles = W.device.type == "cpu" and W.dtype in (torch.float32, torch.float64)
    (_compiled if compiles else _eager)(W, X, Q, T, scale, zero, group, max_code)


def _eager(
    W: Tensor, X: Tensor, Q: Tensor, T: Tensor, scale: Tensor, zero: Tensor, group: Tensor, max_code: int
) -> None:
    scale, zero = (part.expand(len(W), -1) if len(part) == 1 else part.index_select(0, group) for part in (scale, zero))
    low, high = -zero, max_code - zero
    V = X + W
    codes = torch.empty_like(V)
    for k, (w, v, q, s, lowest, highest, error) in enumerate(zip(W, V, codes, scale, low, high, X, strict=True)):
        if k:
            v.addmv_(X[:k].T, T[k, :k])
        # The code without its zero: the published code rounds before adding the zero.
        torch.div(v, s, out=q).round_().clamp_(lowest, highest)
        torch.addcmul(w, q, s, value=-1, out=error)
    Q.copy_(codes.add_(zero))


def _compiled(
    W: Tensor, X: Tensor, Q: Tensor, T: Tensor, scale: Tensor, zero: Tensor, group: Tensor, max_code: int
) -> None:
    loop = _loop()
    groups, factors = group.numpy(), T.contiguous().numpy()
    limit = W.new_tensor(float(max_code)).numpy()[()]

    loop(*(part.numpy() for part in (W, X, Q, scale, zero)), factors, groups, limit, LANES)


@cache
def _loop() -> Callable[..., None]:
    import numba
    import numpy as np

    def loop(W: Any, X: Any, Q: Any, scale: Any, zero: Any, T: Any, group: Any, max_code: Any, lanes: int) -> None:
        rows = W.shape[1]
        buffer = np.empty(lanes, W.dtype)
        for start in range(0, rows, lanes):
            stop = min(start + lanes, rows)
            v = buffer[: stop - start]
            for k in range(len(W)):
                w, x, s, z = W[k, start:stop], X[k, start:stop], scale[group[k], start:stop], zero[group[k], start:stop]
                codes = Q[k, start:stop]
                for i in range(len(v)):
                    v[i] = x[i] + w[i]
                j = 0
                while j + 4 <= k:
                    a, b, c, d = X[j, start:stop], X[j + 1, start:stop], X[j + 2, start:stop], X[j + 3, start:stop]
                    ta, tb, tc, td = T[k, j], T[k, j + 1], T[k, j + 2], T[k, j + 3]
                    for i in range(len(v)):
                        v[i] += (a[i] * ta + b[i] * tb) + (c[i] * tc + d[i] * td)
                    j += 4
                while j < k:
                    a, ta = X[j, start:stop], T[k, j]
                    for i in range(len(v)):
                        v[i] += a[i] * ta
                    j += 1
                for i in range(len(v)):
                    # The code without its zero: the published code rounds before adding the zero.
                    q = min(max(np.rint(v[i] / s[i]), -z[i]), max_code - z[i])
                    x[i] = w[i] - q * s[i]
                    codes[i] = np.uint8(q + z[i])

    # Allow fused multiply-add, but no other reordering.
    options: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(loop)
    except RuntimeError:  # Neither this folder nor the user's cache folder is writable.
        return numba.njit(**options)(loop)
