"""GPTQ (arXiv 2210.17323): round column by column; later columns compensate for each error.

Symbols: ``W`` ``[O, I]`` is the weight, ``H`` ``[I, I]`` the Hessian of the layer's squared output error (proportional
to the Gram matrix of its inputs), ``E`` the errors of finished columns.

With ``H = M^T M``, ``M`` lower triangular (``factor.py``), column ``j`` is rounded after adding ``sum_i<j (M_ji / M_jj) E_i``:
the paper's correction, because GPTQ is Babai's nearest plane algorithm (arXiv 2507.18553). The errors replace the working copy
of the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from mmq_sweeps.identity.roles import UNLESS_NULL
from mmq_sweeps.methods.base import EXPECTED, GroupedMethod, LayerStats, Solution, check_vision_weight
from mmq_sweeps.methods.factor import BLOCK, MAX_DAMPING, Factor, NotDefiniteError, factorize, factorized_in_place
from mmq_sweeps.methods.formats import Format, Grid, QuantizedWeight, fit_grid, round_nearest
from mmq_sweeps.methods.gptq_columns import round_columns
from mmq_sweeps.methods.products import product

# A factor of up to this many columns (4 MB) is cached for the next method. A larger one overwrites its Gram matrix
# temporarily, unless another method is expected to request it.
KEPT_COLUMNS = 1024
# Least memory limit for a chunk of rows, and bytes per weight in it: the weight and its correction or error in
# float32, its code twice, and two bytes for temporaries.
LEAST_CHUNK, BYTES_A_NUMBER = 2**26, 12


def solve_many(
    weights: Sequence[Tensor],
    factor: Factor,
    formats: Sequence[Format],
    block_size: int = 32,
    static_groups: bool = True,
    grids: Sequence[Sequence[Grid]] | None = None,
) -> list[list[QuantizedWeight]]:
    """Quantize ``weights`` ``[O_k, I]`` to each of ``formats``; return a list of weights per format.

    Rows are independent, so rows of all weights are solved together, in chunks. A chunk and the factor's copies of
    diagonal blocks take no more memory than the largest weight (or ``LEAST_CHUNK``).

    A format's codes do not depend on the other formats: chunks do not depend on their number, and formats are solved
    one after the other, so products have the same shapes and sums the same order. ``block_size`` columns are corrected
    singly and longer stretches in products, which changes speed only.

    ``static_groups`` fits grids to the original weight; otherwise each group's grid is fitted to its columns once all
    columns before have corrected them. ``grids``, by format and weight, replaces fitted grids.
    """
    weights = [weight.to(factor.lower.dtype) for weight in weights]
    if factor.dead.any():
        weights = [weight.masked_fill(factor.dead, 0.0) for weight in weights]
    rows, columns = sum(map(len, weights)), weights[0].shape[1]
    works = []
    for index, format in enumerate(formats):
        fitted = grids[index] if grids else None
        if fitted is None and (static_groups or not isinstance(format.group_size, int)):
            fitted = [fit_grid(weight, format) for weight in weights]
        works.append(_Work(weights, factor, format, block_size, fitted))
    most_bytes = max(LEAST_CHUNK, *(weight.numel() * 4 - columns * BLOCK * 4 for weight in weights))
    chunk = max(1, most_bytes // (BYTES_A_NUMBER * columns))
    for start in range(0, rows, chunk):
        W = _rows(weights, start, min(start + chunk, rows)).T.contiguous().index_select(0, factor.order)
        X, Q = torch.empty_like(W), torch.empty_like(W, dtype=torch.uint8)
        for work in works:
            work.quantize(W, X.zero_(), Q, start)
    return [work.result() for work in works]


class _Work:
    """The stacked weights of ``solve_many``, solved for a single format.

    ``scale`` and ``zero`` ``[G, R]`` are the grids of all rows, ``s`` and ``z`` ``[G, r]`` those of the current chunk.
    Of this chunk, ``W`` ``[I, r]`` is the weight as columns in the factor's order; ``X`` ``[I, r]`` holds a column's
    correction until the column is rounded, and its error from then on.
    """

    def __init__(
        self, weights: Sequence[Tensor], factor: Factor, format: Format, leaf: int, grids: Sequence[Grid] | None
    ) -> None:
        self.sizes, columns = [len(weight) for weight in weights], weights[0].shape[1]
        rows = sum(self.sizes)
        self.format, self.leaf, self.grids = format, leaf, grids
        self.N, self.order = factor.lower, factor.order
        groups = format.groups((rows, columns))[1]
        self.scale, self.zero = (weights[0].new_empty(groups, rows) for _ in range(2))
        if grids is not None:
            for grid, scale, zero in zip(grids, *self._split_grids(), strict=True):
                scale.copy_(grid.scale.T)
                zero.copy_(grid.zero.T)
        self.width = columns // groups
        self.group = factor.order // self.width
        self.codes = torch.empty(rows, columns, dtype=torch.uint8, device=weights[0].device)

    def quantize(self, W: Tensor, X: Tensor, Q: Tensor, row: int) -> None:
        """Quantize the rows ``W`` ``[I, r]`` that start at ``row``; ``X`` must hold zeros, ``Q`` receives the codes."""
        rows = slice(row, row + W.shape[1])
        self.W, self.X, self.Q = W, X, Q
        self.s, self.z = self.scale[:, rows].contiguous(), self.zero[:, rows].contiguous()
        step = BLOCK if self.grids is not None else max(1, BLOCK // self.width) * self.width
        for start in range(0, len(W), step):
            at = slice(start, min(start + step, len(W)))
            if start:
                X[at] = product(self.N[at, :start], X[:start])
            self._columns(at.start, at.stop)
        # Reorder once, because each reordering walks through all codes.
        self.codes[rows] = Q.index_select(0, self.order.argsort()).T
        self.scale[:, rows], self.zero[:, rows] = self.s, self.z
        del self.W, self.X, self.Q, self.s, self.z

    def _split_grids(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return views of the scales and of the zeros of each weight."""
        return self.scale.split(self.sizes, dim=1), self.zero.split(self.sizes, dim=1)

    def result(self) -> list[QuantizedWeight]:
        """Return the quantized weights; fitted grids are copied, for weights do not share memory."""
        grids = self.grids or [
            Grid(scale.T.contiguous(), zero.T.contiguous(), self.format)
            for scale, zero in zip(*self._split_grids(), strict=True)
        ]
        return [QuantizedWeight(codes, grid) for codes, grid in zip(self.codes.split(self.sizes), grids, strict=True)]

    def _columns(self, start: int, stop: int) -> None:
        """Quantize columns ``[start, stop)``, already corrected by all columns before them."""
        size = stop - start
        refit = self.grids is None
        if refit and size == self.width:
            self._fit(start, stop)
        if size <= self.leaf and not (refit and size > self.width):
            at = slice(start, stop)
            round_columns(
                self.W[at], self.X[at], self.Q[at], self.N[at, at], self.s, self.z, self.group[at], self.format.max_code
            )
            return
        half = (size + 1) // 2
        # Do not split a group whose grid is fitted on the way.
        middle = start + (-(-half // self.width) * self.width if refit and size > self.width else half)
        self._columns(start, middle)
        self.X[middle:stop].add_(product(self.N[middle:stop, start:middle], self.X[start:middle]))
        self._columns(middle, stop)

    def _fit(self, start: int, stop: int) -> None:
        """Fit the grid of the group of columns ``[start, stop)`` to the corrected columns."""
        # The columns' values if all of them, still unrounded, could compensate for the errors so far.
        T = self.N[start:stop, start:stop]
        free = torch.linalg.solve_triangular(T, self.X[start:stop], upper=False, unitriangular=True)
        corrected = free.add_(self.W[start:stop]).T
        grid = fit_grid(corrected, replace(self.format, group_size="channel"))
        self.s[start // self.width], self.z[start // self.width] = grid.scale[:, 0], grid.zero[:, 0]


def _rows(weights: Sequence[Tensor], start: int, stop: int) -> Tensor:
    """Return rows ``[start, stop)`` of the stacked ``weights``."""
    pieces = []
    for weight in weights:
        pieces.append(weight[max(start, 0) : max(stop, 0)])
        start, stop = start - len(weight), stop - len(weight)
    return torch.cat(pieces)


@dataclass(frozen=True)
class ColumnMethod(GroupedMethod):
    """Base of solvers like GPTQ: their fields, and a ValueError that names one that they cannot honour, and the choices."""

    damping: float = 0.01
    act_order: bool = True
    static_groups: bool = True
    block_size: int = 32
    sequential: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.damping <= MAX_DAMPING:
            raise ValueError(f"damping={self.damping!r}: choose a fraction from 0 to {MAX_DAMPING:g}")
        if self.block_size < 1:
            raise ValueError(f"block_size={self.block_size!r}: choose a positive number of columns")
        if self.act_order and not self.static_groups and isinstance(self.group_size, int):
            raise ValueError(
                f"static_groups=False with act_order=True and group_size={self.group_size}: such groups are of columns that "
                "do not lie side by side; choose static_groups=True or act_order=False"
            )


@dataclass(frozen=True)
class GPTQ(ColumnMethod):
    """GPTQ. ``damping`` is a fraction of the mean diagonal of the Gram matrix.

    ``static_groups`` fits every grid before any column is quantized; otherwise each group's grid is fitted to its
    corrected columns, which requires columns in their own order. ``sequential`` and ``vision_weight`` are read by the
    caller: each block of a part is calibrated behind the already quantized ones; vision tokens count that share of the
    Gram matrix and text tokens the rest.
    """

    vision_weight: float | None = field(default=None, metadata=UNLESS_NULL)

    known_as: ClassVar[str] = "gptq"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_vision_weight(self.vision_weight)

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:
        return self.quantize_many(weights, stats, [format])[0]

    def quantize_many(
        self, weights: Sequence[Tensor], stats: LayerStats | None, formats: Sequence[Format]
    ) -> list[Solution]:
        """Quantize to all ``formats`` with a single factorization; a cached factor also serves other methods."""
        if stats is None:
            raise ValueError("GPTQ needs the statistics of the layer's inputs")
        weights = [weight.float() for weight in weights]
        try:
            with self._factorized(stats) as factor:
                if factor.dead.all():
                    return [_rounded(weights, format, "every input is always zero") for format in formats]
                solved = solve_many(weights, factor, formats, self.block_size, self.static_groups)
                return [Solution(of_format, self.notes(factor)) for of_format in solved]
        except NotDefiniteError as error:
            return [_rounded(weights, format, str(error)) for format in formats]

    @contextmanager
    def _factorized(self, stats: LayerStats) -> Iterator[Factor]:
        key = self.factor_key
        if len(stats.gram) <= KEPT_COLUMNS or key in stats.shared or key in stats.shared.get(EXPECTED, ()):
            yield self.factor(stats)
            return
        with factorized_in_place(stats.gram, self.damping, self.act_order) as factor:
            yield factor

    @property
    def factor_key(self) -> tuple[str, float, bool]:
        """Everything the factorization depends on besides the Gram matrix; methods with equal keys share it."""
        return ("gptq", self.damping, self.act_order)

    def factor(self, stats: LayerStats) -> Factor:
        """Return the factorization, cached in ``stats.shared``."""
        if self.factor_key not in stats.shared:
            stats.shared[self.factor_key] = factorize(stats.gram, self.damping, self.act_order)
        factor: Factor = stats.shared[self.factor_key]
        return factor

    def notes(self, factor: Factor) -> dict[str, object]:
        """Return notes on the factorization for the record: raised damping, dead inputs."""
        notes: dict[str, object] = {}
        if factor.damping != self.damping:
            notes["damping"] = factor.damping
        if dead := int(factor.dead.sum()):
            notes["dead_inputs"] = dead
        return notes


def _rounded(weights: Sequence[Tensor], format: Format, reason: str) -> Solution:
    """Round to nearest, the limit of GPTQ as the damping grows."""
    return Solution([round_nearest(weight, format) for weight in weights], {"fallback": "rtn", "reason": reason})
