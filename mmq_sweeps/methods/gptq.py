"""GPTQ (arXiv 2210.17323): round column by column, and correct the columns to come for each error made.

Symbols are the paper's: ``W`` ``[O, I]`` the weight, ``H`` ``[I, I]`` the Hessian of the layer's squared output error
(proportional to the Gram matrix of its inputs), ``U`` the upper Cholesky factor of the inverse of the damped ``H``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmq_sweeps.affine import Format, Grid, QuantizedWeight, check_group_size, fit_grid
from mmq_sweeps.methods.base import LayerStats, Solution

# Damping grows tenfold a try, from the configured fraction of the mean diagonal to the whole of it and once beyond.
MAX_DAMPING = 10.0


@dataclass(frozen=True)
class Factor:
    """``U`` ``[I, I]`` in the order that columns are quantized in; ``order[j]`` is the original index of column ``j``."""

    upper: Tensor
    order: Tensor
    dead: Tensor
    damping: float


def factorize(gram: Tensor, damping: float = 0.01, act_order: bool = True) -> Factor:
    """Factor the damped inverse of ``gram`` ``[I, I]``; it serves every bit-width and every linear on the same input.

    Inputs that are always zero are marked ``dead`` and get a unit diagonal. ``act_order`` takes columns by falling
    diagonal. Where the Cholesky factorization fails, damping grows tenfold a try; the value used is returned.
    A matrix that is not finite, or fails at the largest damping, is a ValueError.
    """
    if not torch.isfinite(gram).all():
        raise ValueError("the Gram matrix of the calibration inputs has values that are not finite")
    diagonal = gram.diagonal()
    dead = diagonal <= 0
    hessian = gram.clone()
    hessian.diagonal()[dead] = 1.0
    order = (
        torch.argsort(diagonal, descending=True, stable=True) if act_order else torch.arange(len(dead)).to(dead.device)
    )
    hessian = hessian[order][:, order]
    mean_diagonal = hessian.diagonal().mean()
    while damping <= MAX_DAMPING:
        damped = hessian.clone()
        damped.diagonal().add_(damping * mean_diagonal)
        # H = R R^T with R upper follows from factoring the flipped matrix; then H^-1 = U^T U with U = R^-1: one
        # factorization and one triangular solve where factor-invert-factor takes three steps.
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not int(failed):
            identity = torch.eye(len(dead), dtype=gram.dtype, device=gram.device)
            upper = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
            if torch.isfinite(upper).all():
                return Factor(upper, order, dead, damping)
        damping = max(damping * 10, 1e-6)
    raise ValueError(f"Cholesky factorization of the Gram matrix failed even with damping {damping / 10:g}")


def solve(weight: Tensor, factor: Factor, format: Format, block_size: int = 128) -> QuantizedWeight:
    """Quantize ``weight`` ``[O, I]`` column by column behind ``factor``.

    Grids are fitted to the uncorrected weight (static groups), so the result does not depend on ``block_size``, which
    only sets how many columns are corrected one at a time before the rest is corrected in one product.
    """
    W = weight.to(factor.upper.dtype)[:, factor.order]
    W[:, factor.dead[factor.order]] = 0.0
    grid = fit_grid(_original_order(W, factor.order), format)
    scale, zero = _column_grids(grid, factor.order, W.shape)
    Q = torch.empty_like(W)
    columns = W.shape[1]
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        Err = torch.empty_like(W[:, start:stop])
        for j in range(start, stop):
            w, u = W[:, j], factor.upper[j]
            q = torch.round(w / scale[:, j] + zero[:, j]).clamp_(0, format.max_code)
            err = (w - (q - zero[:, j]) * scale[:, j]) / u[j]
            W[:, j + 1 : stop].addr_(err, u[j + 1 : stop], alpha=-1)
            Q[:, j], Err[:, j - start] = q, err
        W[:, stop:] -= Err @ factor.upper[start:stop, stop:]
    codes = _original_order(Q, factor.order).to(torch.uint8)
    return QuantizedWeight(codes, grid)


def _original_order(matrix: Tensor, order: Tensor) -> Tensor:
    restored = torch.empty_like(matrix)
    restored[:, order] = matrix
    return restored


def _column_grids(grid: Grid, order: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    scale, zero = grid.expand(shape[1])
    return scale.expand(shape)[:, order], zero.expand(shape)[:, order]


@dataclass(frozen=True)
class GPTQ:
    """GPTQ with static groups. ``damping`` is a fraction of the mean diagonal of the Gram matrix."""

    group_size: int | str = "channel"
    symmetric: bool = False
    damping: float = 0.01
    act_order: bool = True
    block_size: int = 128

    needs_statistics: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_group_size(self.group_size)
        if not 0 <= self.damping <= MAX_DAMPING:
            raise ValueError(f"damping={self.damping!r}: choose a fraction from 0 to {MAX_DAMPING:g}")
        if self.block_size < 1:
            raise ValueError(f"block_size={self.block_size!r}: choose a positive number of columns")

    def format(self, bits: int) -> Format:
        return Format(bits, self.group_size, self.symmetric)

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:
        if stats is None:
            raise ValueError("GPTQ needs the statistics of the layer's inputs")
        factor = factorize(stats.gram, self.damping, self.act_order)
        quantized = [solve(weight.float(), factor, format, self.block_size) for weight in weights]
        notes: dict[str, object] = {}
        if factor.damping != self.damping:
            notes["damping"] = factor.damping
        if dead := int(factor.dead.sum()):
            notes["dead_inputs"] = dead
        return Solution(quantized, notes)
