"""A few columns rounded one after the other, each once those before it have corrected it: what GPTQ cannot do at once.

Between two columns there is little arithmetic, so that operators of torch, some microseconds each, would take longer to
start than to run. On a CPU the loop is compiled instead, when it is first needed (numba keeps the result on disk).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

# Rows that go through the columns together: what they need of 32 columns stays in a core's first cache.
LANES = 256


def round_columns(
    W: Tensor, X: Tensor, Q: Tensor, T: Tensor, scale: Tensor, zero: Tensor, group: Tensor, max_code: int
) -> None:
    """Round ``c`` columns of ``r`` rows; columns lie as rows of the tensors.

    ``W`` ``[c, r]`` is the weight. ``X`` ``[c, r]`` holds the corrections that it has got so far, and afterwards the errors
    made; ``Q`` ``[c, r]``, of bytes, receives the codes. Column ``k`` is corrected by ``sum_j<k T[k, j] X[j]`` of the errors
    before it. Its grid is row ``group[k]`` of ``scale`` and ``zero`` ``[G, r]``, with codes from 0 to ``max_code``.
    """
    if W.device.type == "cpu" and W.dtype in (torch.float32, torch.float64):
        _compiled(W, X, Q, T, scale, zero, group, max_code)
    else:
        _eager(W, X, Q, T, scale, zero, group, max_code)


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
        # The code less its zero: rounding before the zero is added is what the published code does.
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
                    # The code less its zero: rounding before the zero is added is what the published code does.
                    q = min(max(np.rint(v[i] / s[i]), -z[i]), max_code - z[i])
                    x[i] = w[i] - q * s[i]
                    codes[i] = np.uint8(q + z[i])

    # Multiplying and adding may be one instruction; nothing else is reordered.
    options: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(loop)
    except RuntimeError:  # Neither beside this file nor in the user's folder for caches may it write.
        return numba.njit(**options)(loop)
