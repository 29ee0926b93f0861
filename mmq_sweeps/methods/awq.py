"""AWQ (arXiv 2306.00978): protect the columns that carry large activations by scaling them up before rounding.

Both searches measure the squared error of the layer's output over all calibration tokens, which is a quadratic form in
the Gram matrix ``G`` ``[I, I]`` of its inputs: ``sum_o e_o G e_o^T`` for the weight error ``e`` ``[O, I]``. No sample of
tokens is run again. The scale is kept beside the codes (``Q(W s) / s``) instead of being fused into an earlier layer, so
it works wherever a linear stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmq_sweeps.affine import Format, Grid, QuantizedWeight, check_group_size, fit_grid, round_to_grid
from mmq_sweeps.methods.base import LayerStats, Solution


def output_error(error: Tensor, gram: Tensor) -> Tensor:
    """Mean squared output error of each row ``[O]`` that the weight error ``[O, I]`` makes on inputs with ``gram``."""
    return ((error @ gram) * error).sum(dim=1)


def search_scale(
    weights: Sequence[Tensor], stats: LayerStats, format: Format, n_grid: int = 20
) -> tuple[Tensor, float]:
    """The input scale ``[I]`` with the least output error over ``weights``, and its exponent.

    Candidates are ``mean_abs ** (k / n_grid)`` for ``k = 0 .. n_grid - 1``, normalised to a geometric mid-range of one;
    ``k = 0`` is no scaling, so the result is never worse than rounding. Scales are rounded to float16 as stored.
    """
    best_error, best_scale, best_ratio = float("inf"), torch.ones_like(stats.mean_abs), 0.0
    for k in range(n_grid):
        ratio = k / n_grid
        scale = stats.mean_abs.clamp(min=1e-4).pow(ratio)
        scale = (scale / (scale.max() * scale.min()).sqrt()).to(torch.float16).float()
        error = 0.0
        for weight in weights:
            scaled = weight * scale
            grid = fit_grid(scaled, format)
            rounded = QuantizedWeight(round_to_grid(scaled, grid), grid, scale).dequantize()
            error += output_error(weight - rounded, stats.gram).sum().item()
        if error < best_error:
            best_error, best_scale, best_ratio = error, scale, ratio
    return best_scale, best_ratio


def search_clip(scaled: Tensor, gram: Tensor, format: Format, steps: int, max_shrink: float) -> Grid:
    """The grid of ``scaled`` ``[O, I]`` whose range, shrunk by up to ``max_shrink``, has the least output error a group.

    ``gram`` is that of the scaled inputs. A group's error is measured on its own columns, as in the paper's code; no
    shrinking is a candidate, and wins ties.
    """
    rows, columns = format.groups((scaled.shape[0], scaled.shape[1]))
    best = torch.full((rows, columns), float("inf"), dtype=scaled.dtype, device=scaled.device)
    shrink = torch.ones_like(best)
    for step in range(steps):
        candidate = 1 - max_shrink * step / steps
        grid = fit_grid(scaled, format, candidate)
        error = scaled - QuantizedWeight(round_to_grid(scaled, grid), grid).dequantize()
        loss = _group_errors(error, gram, rows, columns)
        better = loss < best
        best, shrink = torch.where(better, loss, best), torch.where(better, candidate, shrink)
    return fit_grid(scaled, format, shrink)


def _group_errors(error: Tensor, gram: Tensor, rows: int, columns: int) -> Tensor:
    if rows == 1 and columns == 1:
        return output_error(error, gram).sum().reshape(1, 1)
    size = error.shape[1] // columns
    parts = error.reshape(error.shape[0], columns, size)
    diagonal_blocks = torch.stack([gram[i : i + size, i : i + size] for i in range(0, error.shape[1], size)])
    return torch.einsum("ogi,gij,ogj->og", parts, diagonal_blocks, parts)


def solve(
    weights: Sequence[Tensor],
    stats: LayerStats,
    format: Format,
    n_grid: int = 20,
    clip_steps: int = 10,
    max_shrink: float = 0.5,
) -> tuple[list[QuantizedWeight], float]:
    """Quantize ``weights`` ``[O_k, I]``, which share their input: scale search, then clip search.

    Returns them in order, with one shared ``input_scale``, and the exponent of that scale.
    """
    input_scale, ratio = search_scale(weights, stats, format, n_grid)
    scaled_gram = stats.gram / torch.outer(input_scale, input_scale)
    quantized = []
    for weight in weights:
        scaled = weight * input_scale
        grid = (
            search_clip(scaled, scaled_gram, format, clip_steps, max_shrink) if clip_steps else fit_grid(scaled, format)
        )
        quantized.append(QuantizedWeight(round_to_grid(scaled, grid), grid, input_scale.to(torch.float16)))
    return quantized, ratio


@dataclass(frozen=True)
class AWQ:
    """Scale search over ``n_grid`` exponents, then a clip search over ``clip_steps`` ranges (0 leaves clipping out)."""

    group_size: int | str = "channel"
    symmetric: bool = False
    n_grid: int = 20
    clip_steps: int = 10
    max_shrink: float = 0.5

    needs_statistics: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_group_size(self.group_size)
        if self.n_grid < 1:
            raise ValueError(f"n_grid={self.n_grid!r}: choose at least one exponent")
        if self.clip_steps < 0 or not 0 <= self.max_shrink < 1:
            raise ValueError(
                f"clip_steps={self.clip_steps!r} must be 0 or more, max_shrink={self.max_shrink!r} in [0, 1)"
            )

    def format(self, bits: int) -> Format:
        return Format(bits, self.group_size, self.symmetric)

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:
        if stats is None:
            raise ValueError("AWQ needs the statistics of the layer's inputs")
        weights = [weight.float() for weight in weights]
        quantized, ratio = solve(weights, stats, format, self.n_grid, self.clip_steps, self.max_shrink)
        return Solution(quantized, {"scale_exponent": ratio})
