"""Sums of the tokens of one input: their Gram matrix and magnitudes, in a bound of memory."""

from __future__ import annotations

import torch
from torch import Tensor

from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.products import LEAST, is_large, product

# Tokens summed in single precision before being added to the double-precision sums: TOKENS_AT_ONCE, or as many as fit
# into WAITING_BYTES, but at least LEAST_TOKENS, so that adding does not take as long as multiplying.
TOKENS_AT_ONCE, WAITING_BYTES, LEAST_TOKENS = 4096, 2**23, 512
# Rows of a Gram matrix summed at a time.
PANEL = 256


class Sums:
    """Sums over the tokens of an input, in double precision.

    Only the lower triangle of the Gram matrix is stored, in panels of rows: half the arithmetic, and the memory of a
    whole matrix in single precision.
    """

    def __init__(self, x: Tensor, keep_inputs: bool, waiting_bytes: int | None = None) -> None:
        size = x.shape[-1]
        # Long single-precision sums lose the small eigenvalues that GPTQ depends on.
        dtype = torch.float32 if x.device.type == "mps" else torch.float64
        self._panels = [
            torch.zeros(stop - start, stop, dtype=dtype, device=x.device)
            for start in range(0, size, PANEL)
            for stop in [min(start + PANEL, size)]
        ]
        self.magnitude = torch.zeros(size, dtype=dtype, device=x.device)
        self.count = 0
        self._not_finite = torch.zeros((), dtype=torch.int64, device=x.device)
        self._inputs: list[Tensor] | None = [] if keep_inputs else None
        # Pending tokens are copied, because an input may be changed in place later. They are summed once another batch of
        # this size might not fit.
        room = max(LEAST_TOKENS, (WAITING_BYTES if waiting_bytes is None else waiting_bytes) // (4 * size))
        batch = min(x.numel() // size, room, TOKENS_AT_ONCE)
        self._enough = min(TOKENS_AT_ONCE, room - batch + 1)
        self._waiting = torch.empty(self._enough + batch - 1, size, dtype=torch.float32, device=x.device)
        self._waiting_count = 0

    def add(self, tokens: Tensor) -> None:
        for rows in tokens.split(min(TOKENS_AT_ONCE, len(self._waiting))):
            if self._waiting_count + len(rows) > len(self._waiting):
                self._sum_up()
            self._waiting[self._waiting_count : self._waiting_count + len(rows)] = rows
            self._waiting_count += len(rows)
            if self._waiting_count >= self._enough:
                self._sum_up()
        self.count += len(tokens)

    def _sum_up(self) -> None:
        """Add the products of pending tokens: one pass over the sums for many batches."""
        if not self._waiting_count:
            return
        rows, self._waiting_count = self._waiting[: self._waiting_count], 0
        least = min(PANEL, LEAST) if rows.shape[1] >= LEAST else LEAST
        columns = rows.T.contiguous() if is_large(rows[:, :PANEL].T, rows, least) else rows.T
        for panel in self._panels:
            stop = panel.shape[1]
            own = slice(stop - len(panel), stop)
            panel += product(columns[own], columns[:stop].T, least)
            self.magnitude[own] += rows[:, own].abs().sum(dim=0)
        if self._inputs is not None:
            self._inputs.append(rows.clone())
        self._not_finite += (~rows.abs().amax(dim=1).isfinite()).sum()

    def mean(self) -> LayerStats:
        """Return the statistics; frees the sums panel by panel, so that there is no second matrix. Works only once."""
        self._sum_up()
        if not self._panels:
            raise RuntimeError("the sums of these tokens were given up for their statistics before")
        size = len(self.magnitude)
        self._waiting = self._waiting[:0].clone()  # Freed before the matrix is allocated.
        gram = torch.empty(size, size, dtype=torch.float32, device=self.magnitude.device)
        while self._panels:
            panel = self._panels.pop(0).div_(self.count)
            stop = panel.shape[1]
            start = stop - len(panel)
            rows = gram[start:stop, :stop].copy_(panel)
            rows[:, start:] = rows[:, start:].tril() + rows[:, start:].tril(-1).T
            gram[:start, start:stop] = rows[:, :start].T
        magnitude = (self.magnitude / self.count).float()
        return LayerStats(gram, magnitude, self.count, None if self._inputs is None else torch.cat(self._inputs))

    def not_finite(self) -> int:
        """Return the number of tokens that are not finite; valid before and after ``mean``."""
        self._sum_up()
        return int(self._not_finite)
