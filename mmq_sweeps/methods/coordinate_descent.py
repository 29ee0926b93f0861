"""Coordinate descent on the output error, from GPTQ's codes, with grids refitted to the codes between passes.

The squared output error of a row, ``e H e^T`` for its weight error ``e``, is quadratic in each code if the others are
fixed, so each code has a best value in closed form. Repeated passes over the columns (QuantEase, arXiv 2309.01885;
CDQuant, arXiv 2406.17542) repair errors left by GPTQ, which visits each column once. The error is also quadratic in a
group's scale and offset (COMQ, arXiv 2403.07134), so grids are refitted between passes. Both only go downhill, to the
nearest minimum; hence GPTQ starts from several ranges, and each row continues from its best. The ranges are shares of
the full range (clipping) at first and later ranges around the fitted ones.

``H`` ``[I, I]`` is GPTQ's damped Gram matrix. Inside, weights are transposed, ``[I, O]``, because they are visited by
column. Codes are stored in GPTQ's format and take the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from mmq_sweeps.identity.roles import UNLESS_NULL
from mmq_sweeps.methods.base import GroupedMethod, LayerStats, Solution, check_vision_weight
from mmq_sweeps.methods.formats import (
    Format,
    Grid,
    QuantizedWeight,
    fit_grid,
    storable_scale,
)
from mmq_sweeps.methods.gptq import GPTQ, Factor, NotDefiniteError, solve_many
from mmq_sweeps.methods.products import product

# Shares of a group's full range that GPTQ starts from, and in later rounds of the fitted scale.
FIRST_RANGES = (1.0, 0.85, 0.7, 0.55, 0.4)
LATER_RANGES = (0.9, 1.0, 1.1)


class Hessian:
    """The matrix ``H``: ``gram`` ``[I, I]`` damped as in ``factor``. Columns are copied on request, never all."""

    def __init__(self, gram: Tensor, factor: Factor) -> None:
        diagonal = gram.diagonal().masked_fill(factor.dead, 1.0)
        self._gram, self._diagonal = gram, diagonal + factor.damping * diagonal.mean()

    def columns(self, start: int, stop: int) -> Tensor:
        """Return a copy of ``H[:, start:stop]``."""
        block = self._gram[:, start:stop].clone()
        block[start:stop].diagonal().copy_(self._diagonal[start:stop])
        return block

    def blocks(self, start: int, stop: int, size: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield ``[start, stop)`` in slices of up to ``size`` columns, with the columns of ``H`` at each."""
        for first in range(start, stop, size):
            last = min(first + size, stop)
            yield slice(first, last), self.columns(first, last)


@dataclass
class Candidate:
    """Codes ``Q`` ``[I, O]`` (as floats) on grids ``scale`` and ``zero`` ``[G, O]`` (``[1, 1]`` for ``tensor``)."""

    Q: Tensor
    scale: Tensor
    zero: Tensor

    @staticmethod
    def of(quantized: QuantizedWeight) -> Candidate:
        grid = quantized.grid
        return Candidate(quantized.codes.T.to(grid.scale.dtype).contiguous(), grid.scale.T, grid.zero.T)

    def quantized(self, format: Format) -> QuantizedWeight:
        grid = Grid(self.scale.T.contiguous(), self.zero.T.contiguous(), format)
        return QuantizedWeight(self.Q.T.to(torch.uint8).contiguous(), grid)

    def error(self, W: Tensor) -> Tensor:
        """Return ``W`` ``[I, O]`` minus the weight that the codes represent."""
        grouped = self.Q.reshape(len(self.scale), -1, self.Q.shape[1])
        return W - (grouped - self.zero[:, None]).mul_(self.scale[:, None]).reshape(W.shape)


def output_error(E: Tensor, H: Hessian, block_size: int) -> Tensor:
    """Return ``e H e^T`` for every row ``[O]`` of the weight error ``E`` ``[I, O]``."""
    total = torch.zeros_like(E[0])
    for at, columns in H.blocks(0, len(E), block_size):
        total += _half_product(columns, at.start, E).mul_(E[at]).sum(dim=0)
    return total


def _half_product(columns: Tensor, start: int, X: Tensor) -> Tensor:
    """Return a block's rows of ``H X``, doubling the rows of ``H`` above the block and skipping those below.

    Multiplied by ``X`` and summed over all blocks this is ``X^T H X`` in half the arithmetic, because ``H`` is
    symmetric. ``columns`` are those of ``H`` at the block, which begins at ``start``; they are overwritten.
    """
    stop = start + columns.shape[1]
    columns[:start] *= 2
    return product(columns[:stop].T, X[:stop])


def descend(W: Tensor, candidate: Candidate, H: Hessian, max_code: int, block_size: int) -> None:
    """Set each code of ``candidate`` to its best value, column after column, given the current values of all others.

    ``P``, the gradient of a block's columns, is computed as a product and updated within the block by rank one.
    """
    Q, E = candidate.Q, candidate.error(W)
    width = len(Q) // len(candidate.scale)
    for at, columns in H.blocks(0, len(Q), block_size):
        P, own = product(columns.T, E), columns[at]
        for k, j in enumerate(range(at.start, at.stop)):
            s = candidate.scale[j // width]
            q = (P[k] / (own[k, k] * s)).add_(Q[j]).round_().clamp_(0, max_code)
            change = (q - Q[j]).mul_(s)
            P[k + 1 :].addr_(own[k + 1 :, k], change, alpha=-1)
            E[j] -= change
            Q[j] = q


def refit(W: Tensor, candidate: Candidate, H: Hessian, format: Format, block_size: int) -> None:
    """Fit each group's scale and, unless symmetric, its integer zero to the current codes, group after group.

    Each zero has a best scale; the zeros tried are the current value, its neighbours, and the best real zero rounded. A
    grid is unchanged if none of them, rounded as stored, has less output error.
    """
    Q, E = candidate.Q, candidate.error(W)
    scale, zero = candidate.scale.clone(), candidate.zero.clone()
    width = len(Q) // len(scale)
    for g in range(len(scale)):
        group = slice(g * width, (g + 1) * width)
        moments = _moments(Q, E, group, H, block_size)
        if format.group_size == "tensor":
            moments = [moment.sum(dim=0, keepdim=True) for moment in moments]
        scale[g], zero[g] = _best_grid(scale[g], zero[g], moments, format)
        E[group] = W[group] - (Q[group] - zero[g]).mul_(scale[g])
    candidate.scale, candidate.zero = scale, zero


def _moments(Q: Tensor, E: Tensor, group: slice, H: Hessian, block_size: int) -> list[Tensor]:
    """Return ``q H e``, ``1 H e``, ``q H q``, ``q H 1`` and ``1 H 1`` per row ``[O]``; all but ``e`` are the group's only."""
    found = [torch.zeros_like(E[0]) for _ in range(5)]
    for at, columns in H.blocks(group.start, group.stop, block_size):
        He, own = product(columns.T, E), columns[group]
        h = own.sum(dim=0)
        Hq = _half_product(own, at.start - group.start, Q[group])
        terms = ((He * Q[at]).sum(dim=0), He.sum(dim=0), Hq.mul_(Q[at]).sum(dim=0), h @ Q[at], h.sum())
        for total, term in zip(found, terms, strict=True):
            total += term
    return found


def _best_grid(s: Tensor, z: Tensor, moments: Sequence[Tensor], format: Format) -> tuple[Tensor, Tensor]:
    """Return the scale and zero, among those ``refit`` tries, that lower ``e H e^T`` most for each row.

    On a grid ``(t, y)`` instead of ``(s, z)`` the error is ``e - x q + o`` with ``x = t - s`` and ``o = t y - s z``.
    """
    qe, ue, qq, qu, uu = moments
    zeros = [z]
    if not format.symmetric:
        x = (qe * uu - ue * qu) / (qq * uu - qu * qu)
        o = (qe * qu - ue * qq) / (qq * uu - qu * qu)
        free = ((s * z + o) / (s + x)).nan_to_num(0.0)
        zeros += [(y.round()).clamp(0, format.max_code) for y in (z - 1, z + 1, free)]
    best, best_s, best_z = torch.zeros_like(qe), s, z
    for y in zeros:
        t = (qe - y * ue + s * (qq - (z + y) * qu + z * y * uu)) / (qq - 2 * y * qu + y * y * uu)
        t = storable_scale(t.nan_to_num(0.0, 0.0, 0.0), format)
        x, o = t - s, t * y - s * z
        change = x * x * qq - 2 * x * o * qu + o * o * uu - 2 * (x * qe - o * ue)
        better = change < best
        best, best_s, best_z = (
            torch.where(better, new, old) for new, old in ((change, best), (t, best_s), (y, best_z))
        )
    return best_s, best_z


def solve(
    weight: Tensor,
    gram: Tensor,
    factor: Factor,
    format: Format,
    rounds: int = 2,
    sweeps: int = 2,
    block_size: int = 128,
) -> QuantizedWeight:
    """Quantize ``weight`` ``[O, I]`` with at most the output error of GPTQ with the same ``factor``.

    A round starts GPTQ from several ranges, takes the best codes of each row, then refits the grids and updates all
    columns ``sweeps`` times.
    """
    weight = weight.masked_fill(factor.dead, 0.0)
    H, W = Hessian(gram, factor), weight.T.contiguous()
    kept: Candidate | None = None
    for _ in range(rounds):
        grids = (
            [fit_grid(weight, format, share) for share in FIRST_RANGES]
            if kept is None
            else [
                grid.with_scale(grid.scale * share) for grid in [kept.quantized(format).grid] for share in LATER_RANGES
            ]
        )
        started = solve_many([weight] * len(grids), factor, [format], grids=[grids])[0]
        candidates = [Candidate.of(quantized) for quantized in started]
        kept = _best_rows(W, [*([kept] if kept else []), *candidates], H, format, block_size)
        for _ in range(sweeps):
            refit(W, kept, H, format, block_size)
            descend(W, kept, H, format.max_code, block_size)
    assert kept is not None
    return kept.quantized(format)


def split_rows(quantized: QuantizedWeight, rows: Sequence[int]) -> list[QuantizedWeight]:
    """Split ``quantized`` ``[O, I]`` into weights of the given numbers of ``rows``; not for ``tensor`` grids."""
    grid = quantized.grid
    parts = zip(*(part.split(list(rows)) for part in (quantized.codes, grid.scale, grid.zero)), strict=True)
    return [QuantizedWeight(codes, Grid(scale, zero, grid.format)) for codes, scale, zero in parts]


def _best_rows(W: Tensor, candidates: Sequence[Candidate], H: Hessian, format: Format, block_size: int) -> Candidate:
    """Take each row (for ``tensor`` the whole weight) from the candidate with the least output error; the first wins ties."""

    def loss(candidate: Candidate) -> Tensor:
        error = output_error(candidate.error(W), H, block_size)
        return error.sum(dim=0, keepdim=True) if format.group_size == "tensor" else error

    best, least = candidates[0], loss(candidates[0])
    for candidate in candidates[1:]:
        error = loss(candidate)
        better = error < least
        least = torch.where(better, error, least)
        best = Candidate(
            torch.where(better, candidate.Q, best.Q),
            torch.where(better, candidate.scale, best.scale),
            torch.where(better, candidate.zero, best.zero),
        )
    return best


@dataclass(frozen=True)
class CoordinateDescent(GroupedMethod):
    """GPTQ from several ranges, then coordinate descent. ``damping``, ``act_order``, ``sequential`` and ``vision_weight`` are
    GPTQ's.
    """

    damping: float = 0.01
    act_order: bool = True
    rounds: int = 2
    sweeps: int = 2
    block_size: int = 128
    sequential: bool = False
    vision_weight: float | None = field(default=None, metadata=UNLESS_NULL)

    known_as: ClassVar[str] = "coordinate_descent"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds!r}: choose at least one round")
        if self.sweeps < 0:
            raise ValueError(f"sweeps={self.sweeps!r}: choose 0 or more passes over the columns")
        if self.block_size < 1:
            raise ValueError(f"block_size={self.block_size!r}: choose a positive number of columns")
        check_vision_weight(self.vision_weight)
        self._gptq()  # Validates the shared fields.

    @property
    def factor_key(self) -> tuple[str, float, bool]:
        """Key of ``GPTQ`` with the same fields, so that both share a factorization."""
        return self._gptq().factor_key

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:
        return self.quantize_many(weights, stats, [format])[0]

    def quantize_many(
        self, weights: Sequence[Tensor], stats: LayerStats | None, formats: Sequence[Format]
    ) -> list[Solution]:
        """Quantize to all ``formats`` with a single factorization, shared with GPTQ of the same fields."""
        if stats is None:
            raise ValueError("coordinate descent needs the statistics of the layer's inputs")
        weights, gptq = [weight.float() for weight in weights], self._gptq()
        try:
            factor = gptq.factor(stats)
        except NotDefiniteError:
            return gptq.quantize_many(weights, stats, formats)
        if factor.dead.all():
            return gptq.quantize_many(weights, stats, formats)
        return [Solution(self._solved(weights, stats, factor, format), gptq.notes(factor)) for format in formats]

    def _solved(
        self, weights: Sequence[Tensor], stats: LayerStats, factor: Factor, format: Format
    ) -> list[QuantizedWeight]:
        fields = (self.rounds, self.sweeps, self.block_size)
        if format.group_size == "tensor":
            return [solve(weight, stats.gram, factor, format, *fields) for weight in weights]
        # Rows are independent, so rows of all weights are solved together.
        return split_rows(solve(torch.cat(list(weights)), stats.gram, factor, format, *fields), list(map(len, weights)))

    def _gptq(self) -> GPTQ:
        return GPTQ(self.group_size, self.symmetric, self.damping, self.act_order)
