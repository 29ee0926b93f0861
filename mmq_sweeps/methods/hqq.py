"""HQQ: half-quadratic quantization (Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog/), without calibration.

The real zero ``z`` of each group is chosen for a sparse error of the weights: a few large errors, most small. It
minimises ``sum |W - s (q - z)|^p`` with ``p < 1`` and ``q = round(W / s + z)``. Half-quadratic splitting alternates two
closed forms: an error ``e`` shrunk by the proximal operator of the lp norm, and the zero as the mean of ``q - (W - e) /
s``. Scales stay those of the group's range.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mmq_sweeps.methods.base import LayerStats, Solution
from mmq_sweeps.methods.formats import Format, Grid, QuantizedWeight, check_group_size, fit_grid, round_to_grid
from mmq_sweeps.methods.magnitude import divided, exponent_of


def shrink(error: Tensor, beta: float, lp_norm: float) -> Tensor:
    """Apply the generalised soft threshold, HQQ's proximal step of ``|e|^p`` at penalty ``beta``, elementwise."""
    magnitude = error.abs()
    threshold = magnitude.pow(lp_norm - 1).div_(beta)
    return torch.copysign(magnitude.sub_(threshold).clamp_(min=0), error)


def update_zero(weight: Tensor, scale: Tensor, zero: Tensor, max_code: int, beta: float, lp_norm: float) -> Tensor:
    """Return the next zero ``[O, G]`` of groups ``weight`` ``[O, G, N]`` after a half-quadratic step."""
    s, z = scale[:, :, None], zero[:, :, None]
    q = torch.round(weight / s + z).clamp_(0, max_code)
    e = shrink(weight - (q - z) * s, beta, lp_norm)
    return (q - (weight - e) / s).mean(dim=2)


def lp_error(weight: Tensor, grid: Grid, lp_norm: float) -> Tensor:
    """Return ``sum |W - W_q|^p`` of each group ``[O, G]`` for ``weight`` ``[O, I]`` rounded to ``grid``."""
    error = weight - QuantizedWeight(round_to_grid(weight, grid), grid).dequantize()
    return error.abs_().pow_(lp_norm).reshape(*grid.scale.shape, -1).sum(dim=2)


def solve(
    weight: Tensor,
    format: Format,
    lp_norm: float = 0.7,
    beta: float = 10.0,
    kappa: float = 1.01,
    iterations: int = 20,
    grid: Grid | None = None,
) -> QuantizedWeight:
    """Quantize ``weight`` ``[O, I]`` to a ``format`` with real zeros, starting from the ``grid`` of its groups' ranges.

    The penalty ``beta`` grows by ``kappa`` per step. Over all steps and the range's own grid, each group takes the zero
    with the least lp error as stored; the published code stops all groups together once their mean error grows.
    """
    best = grid or fit_grid(weight, format)
    least = lp_error(weight, best, lp_norm)
    grouped = weight.reshape(*best.scale.shape, -1)
    zero = best.zero
    for _ in range(iterations):
        zero = update_zero(grouped, best.scale, zero, format.max_code, beta, lp_norm)
        candidate = Grid(best.scale, zero.to(format.zero_dtype).to(zero.dtype), format)
        error = lp_error(weight, candidate, lp_norm)
        better = error < least
        least = torch.where(better, error, least)
        best = Grid(best.scale, torch.where(better, candidate.zero, best.zero), format)
        beta *= kappa
    return QuantizedWeight(round_to_grid(weight, best), best)


@dataclass(frozen=True)
class HQQ:
    """Half-quadratic quantization. Fields are the published code's ``lp_norm``, ``beta``, ``kappa`` and ``iters``.

    ``beta`` applies to weights divided by their largest magnitude, rounded up to a power of two.
    """

    group_size: int | str = "channel"
    lp_norm: float = 0.7
    beta: float = 10.0
    kappa: float = 1.01
    iterations: int = 20

    known_as: ClassVar[str] = "hqq"
    needs_statistics: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_group_size(self.group_size)
        if not 0 < self.lp_norm <= 1:
            raise ValueError(f"lp_norm={self.lp_norm!r}: choose a norm above 0 and up to 1")
        if not self.beta > 0:
            raise ValueError(f"beta={self.beta!r}: choose a penalty above 0")
        if not self.kappa >= 1:
            raise ValueError(f"kappa={self.kappa!r}: choose a growth of the penalty of at least 1")
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations!r}: choose at least one step")

    def format(self, bits: int) -> Format:
        return Format(bits, self.group_size, real_zero=True)

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:  # noqa: ARG002
        return Solution([self._solve(weight, format) for weight in weights], {})

    def _solve(self, weight: Tensor, format: Format) -> QuantizedWeight:
        exponent = exponent_of(weight)
        # Of the weight itself: how many digits a half has may depend on its magnitude.
        grid = fit_grid(weight.float(), format).times_power_of_two(-exponent)
        unit = divided(weight, exponent)
        quantized = solve(unit, format, self.lp_norm, self.beta, self.kappa, self.iterations, grid)
        return quantized.times_power_of_two(exponent)
