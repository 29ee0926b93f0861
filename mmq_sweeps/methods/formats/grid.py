"""Grids: the scales and zeros, or the values of a codebook, that codes stand on, fitted to the groups of a weight."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmq_sweeps.methods.formats import codebooks
from mmq_sweeps.methods.formats.format import Format
from mmq_sweeps.methods.formats.scales import round_to, storable_scale

# Bounds on real zeros, in grid steps. Storing a zero changes it by at most 2**-11 (float32: 2**-24) of itself.
LARGEST_ZERO = {torch.float16: 2.0**15, torch.float32: 2.0**23}


@dataclass(frozen=True)
class Grid:
    """Scales and zeros of a weight's groups as stored, each ``[O, G]`` (``[1, 1]`` for ``tensor``).

    With a codebook, codes stand for ``values`` ``[O or 1, 2**bits]``, ascending, and zeros are 0.
    """

    scale: Tensor
    zero: Tensor
    format: Format
    values: Tensor | None = None

    def expand(self, columns: int) -> tuple[Tensor, Tensor]:
        """Return scale and zero per column, broadcastable to ``[O, I]``, in the scale's working precision."""
        if self.scale.shape[1] == 1:
            return self.scale, self.zero
        repeats = columns // self.scale.shape[1]
        return self.scale.repeat_interleave(repeats, dim=1), self.zero.repeat_interleave(repeats, dim=1)

    def with_scale(self, scale: Tensor) -> Grid:
        """Return the grid with ``scale``, rounded as it is stored."""
        return replace(self, scale=storable_scale(scale, self.format))

    def times_power_of_two(self, exponent: int) -> Grid:
        """Return the grid with steps ``2**exponent`` times as large."""
        # In two steps, because 2**exponent itself may exceed float32.
        scale = self.scale * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)
        return replace(self, scale=scale)


def fit_grid(weight: Tensor, format: Format, shrink: Tensor | float = 1.0) -> Grid:
    """Fit a min/max grid to each group of ``weight`` ``[O, I]``, its range times ``shrink`` (``[O, G]`` or a number).

    The range always includes zero (unless ``real_zero``), so that zero weights stay zero. Scales are rounded to storage
    precision before any use. Raises ValueError if the weight is not finite, or if ``format`` has a codebook in place of steps.
    """
    if format.codebook is not None:
        raise ValueError(f"a min/max grid has even steps, and the format has a codebook: {format}")
    rows, columns = format.groups((weight.shape[0], weight.shape[1]))
    grouped = weight.reshape(rows, columns, -1)
    low, high = grouped.amin(dim=2), grouped.amax(dim=2)
    check_finite(low, high)
    return grid_over(low * shrink, high * shrink, format)


def check_finite(*bounds: Tensor) -> None:
    """Raise a ValueError unless the ``bounds`` of a weight's groups are finite: least and largest values propagate NaN."""
    if not all(bool(bound.isfinite().all()) for bound in bounds):
        raise ValueError("the weight has values that are not finite")


def grid_over(low: Tensor, high: Tensor, format: Format) -> Grid:
    """Return the grid of groups whose weights range from ``low`` to ``high``, each ``[O, G]``; see ``fit_grid``."""
    if format.symmetric:
        # The zero is the middle of [0, max_code], so one step more lies below it than above.
        scale = storable_scale(torch.maximum(-low, high) * 2 / format.max_code, format)
        return Grid(scale, torch.full_like(scale, (format.max_code + 1) // 2), format)
    if format.real_zero:
        # Widen the step of a narrow range far from zero, whose zero would exceed LARGEST_ZERO.
        smallest = low.abs() / LARGEST_ZERO[format.zero_dtype]
        scale = storable_scale(torch.maximum((high - low) / format.max_code, smallest), format)
        return Grid(scale, round_to(-low / scale, format.zero_dtype), format)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = storable_scale((high - low) / format.max_code, format)
    return Grid(scale, torch.round(-low / scale).clamp(0, format.max_code), format)


def codebook_grid(scale: Tensor, format: Format, values: Tensor | None = None) -> Grid:
    """Return the grid of a ``format`` with a codebook: ``values`` ``[O, 2**bits]`` as stored, or the fixed ones.

    ``scale`` ``[O, G]`` is rounded as it is stored.
    """
    scale = storable_scale(scale, format)
    if values is None:
        values = codebooks.normal_float(format.bits).to(scale.device)[None]
    else:
        values = round_to(values, format.scale_dtype)
    return Grid(scale, torch.zeros_like(scale), format, values)


def round_to_grid(weight: Tensor, grid: Grid) -> Tensor:
    """Return the nearest code of every weight ``[O, I]``, as uint8 ``[O, I]``."""
    if grid.values is not None:
        relative = (weight.reshape(*grid.scale.shape, -1) / grid.scale[:, :, None]).reshape(weight.shape)
        return codebooks.nearest(grid.values, relative)
    codes = weight.reshape(*grid.scale.shape, -1) / grid.scale[:, :, None]
    codes = codes.add_(grid.zero[:, :, None]).round_().clamp_(0, grid.format.max_code)
    return codes.to(torch.uint8).reshape(weight.shape)
