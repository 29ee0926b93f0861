"""Round scales to a format's stored precision.

Scales are values of the dtype in which the model computes, so that a loader that multiplies codes and scales in that
dtype gets the weight that was measured, bit for bit. In bfloat16 and float32 multiplying a weight by a power of two does
not change its codes. For a model in float32, scales of rows and groups have the 11 significant bits of a half at any
exponent: they are stored as halves times powers of two, and the powers are omitted if the halves alone can hold a
weight's scales.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmq_sweeps.methods.formats.format import Format

# Normal halves lie from 2**-14 to below 2**16.
SMALLEST_HALF, LARGEST_HALF = 2.0**-14, 65504.0
LARGEST_EXPONENT, SMALLEST_EXPONENT = 15, -14
# The least half is subnormal: below normal halves, scales have fewer digits.
LEAST_HALF = 2.0**-24
# Any scale represents a group of zeros.
SCALE_OF_ZEROS = SMALLEST_HALF


def storable_scale(scale: Tensor, format: Format) -> Tensor:
    """Round ``scale`` to the precision that ``format`` stores; scales of zero or less become a small positive number.

    Scales beyond half precision become the least or the largest half: weights of a model in float16 have none, so only a
    candidate is the worse for it. Raises ValueError if float32 cannot hold a scale.
    """
    if not torch.isfinite(scale).all():
        raise ValueError("a scale is beyond what float32 holds; the weights are too large")
    smallest = torch.finfo(torch.float32).tiny
    if format.scale_dtype is torch.float32:
        return round_to(scale.clamp(min=smallest), torch.float32)
    if format.has_exponents:
        return _round_to_half_digits(torch.where(scale > 0, scale.clamp(min=smallest), SCALE_OF_ZEROS))
    dtype = format.scale_dtype
    least = LEAST_HALF if dtype is torch.float16 else smallest
    return round_to(torch.where(scale > 0, scale.clamp(least, torch.finfo(dtype).max), SCALE_OF_ZEROS), dtype)


def round_to(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype).to(value.dtype)


def _round_to_half_digits(value: Tensor) -> Tensor:
    """Round positive normal numbers to a half's 11 significant bits, ties to even, at any exponent."""
    integer, dropped = {torch.float32: (torch.int32, 13), torch.float64: (torch.int64, 42)}[value.dtype]
    bits = value.contiguous().view(integer)
    # Positive floats order like their bits as integers, so a carry out of the digits raises the exponent.
    bits = bits + (2 ** (dropped - 1) - 1) + ((bits >> dropped) & 1)
    return ((bits >> dropped) << dropped).view(value.dtype)


def scale_exponents(scale: Tensor) -> Tensor | None:
    """Return the exponents of the powers of two that bring ``scale`` ``[O, G]`` into the range of normal halves.

    None if no scale needs it; ``[1, 1]`` if a single power serves all groups; otherwise ``[O, G]``.
    """
    size = scale.abs()
    if not size.numel() or (size.min() >= SMALLEST_HALF and size.max() <= LARGEST_HALF):
        return None
    exponents = torch.frexp(scale.float()).exponent.to(torch.int16) - 1
    shift = exponents.max() - LARGEST_EXPONENT
    if exponents.min() - shift >= SMALLEST_EXPONENT:
        return shift.reshape(1, 1)
    return exponents


def times_power_of_two(value: Tensor, exponents: Tensor) -> Tensor:
    """Return ``value * 2**exponents`` in float64, exactly."""
    return value.double() * ((exponents.to(torch.int64) + 1023) << 52).view(torch.float64)
