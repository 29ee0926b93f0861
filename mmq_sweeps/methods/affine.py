"""Affine quantization of a weight matrix: formats, grids, codes, packing and exact sizes.

A weight ``W`` ``[O, I]`` (output features x input features) is stored as integer codes ``q`` on one grid a group:
``W ~ scale * (q - zero)``. Groups are consecutive input columns of one output row; ``channel`` is one group a row and
``tensor`` one for the whole matrix. AWQ (arXiv 2306.00978) stores ``W * s`` with one input scale ``s`` a column, so that
``W ~ scale * (q - zero) / s``.

A scale has the 11 significant bits of a half, at any exponent that float32 has: a weight times a power of two has the
same codes. It is stored as a half times a power of two, which is left out where the halves alone can hold a weight's scales.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_BITS, MAX_BITS = 2, 8
# Normal halves lie from 2**-14 to below 2**16.
SMALLEST_HALF, LARGEST_HALF = 2.0**-14, 65504.0
LARGEST_EXPONENT, SMALLEST_EXPONENT = 15, -14
# The scale of a group of zeros, for which any would do.
SCALE_OF_ZEROS = SMALLEST_HALF
EXPONENT_BITS = 16
# Real zeros stay below these, in steps of the grid; a zero of that size is off by no more than 2**-11 (2**-24) of itself.
LARGEST_ZERO = {torch.float16: 2.0**15, torch.float32: 2.0**23}


@dataclass(frozen=True)
class Format:
    """How one weight matrix is stored, e.g. ``Format(bits=3, group_size="channel")`` or ``Format(4, 128, symmetric=True)``.

    ``real_zero`` keeps the offset as a float instead of an integer code: the grid then runs from the group's minimum to
    its maximum exactly, as min/max quantization without an integer zero point does.
    """

    bits: int
    group_size: int | str = "channel"
    symmetric: bool = False
    real_zero: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"bits={self.bits!r}: a format has {MIN_BITS} to {MAX_BITS} bits")
        check_group_size(self.group_size)
        if self.symmetric and self.real_zero:
            raise ValueError("symmetric=True and real_zero=True exclude each other: a symmetric grid stores no zero")

    @property
    def max_code(self) -> int:
        return 2**self.bits - 1

    def groups(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the scales of a weight of this ``shape`` ``[O, I]``; an error where columns do not divide."""
        rows, columns = shape
        if self.group_size == "tensor":
            return 1, 1
        if self.group_size == "channel":
            return rows, 1
        size = int(self.group_size)
        if columns % size:
            raise ValueError(f"group_size={size} does not divide {columns} input columns; {_divisors(columns)}")
        return rows, columns // size

    @property
    def scale_dtype(self) -> torch.dtype:
        """A scale a tensor costs nothing, so it keeps float32; a scale a group is stored in half precision."""
        return torch.float32 if self.group_size == "tensor" else torch.float16

    def stored_bits(self, shape: tuple[int, int], input_scaled: bool = False, exponents: int = 0) -> int:
        """Exact size in bits of a weight of this ``shape`` ``[O, I]``: whole bytes of codes and zeros, scales, input scales.

        ``exponents`` is the number of powers of two beside the scales, as ``QuantizedWeight.exponents`` tells.
        """
        rows, columns = shape
        group_rows, group_columns = self.groups(shape)
        count = group_rows * group_columns
        scale_bits = 32 if self.scale_dtype is torch.float32 else 16
        bits = 8 * packed_size(rows * columns, self.bits) + scale_bits * count
        if self.real_zero:
            bits += scale_bits * count
        elif not self.symmetric:
            bits += 8 * packed_size(count, self.bits)
        return bits + (16 * columns if input_scaled else 0) + EXPONENT_BITS * exponents


def check_group_size(group_size: int | str) -> None:
    """An error that names the value and the choices unless ``group_size`` is ``tensor``, ``channel`` or a positive int."""
    if group_size in ("tensor", "channel"):
        return
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise ValueError(f"group_size={group_size!r}: choose tensor, channel or a positive number of input columns")


def _divisors(columns: int) -> str:
    sizes = [size for size in (16, 32, 64, 128, 256) if columns % size == 0]
    return f"sizes that do: {', '.join(map(str, sizes))}, channel, tensor" if sizes else "use channel or tensor"


@dataclass(frozen=True)
class Grid:
    """Scales and zeros of a weight's groups, each ``[O, G]`` (``[1, 1]`` for ``tensor``), as they will be stored."""

    scale: Tensor
    zero: Tensor
    format: Format

    def expand(self, columns: int) -> tuple[Tensor, Tensor]:
        """Scale and zero of every column, broadcastable to ``[O, I]``, in the scale's working precision."""
        if self.scale.shape[1] == 1:
            return self.scale, self.zero
        repeats = columns // self.scale.shape[1]
        return self.scale.repeat_interleave(repeats, dim=1), self.zero.repeat_interleave(repeats, dim=1)


def fit_grid(weight: Tensor, format: Format, shrink: Tensor | float = 1.0) -> Grid:
    """The min/max grid of each group of ``weight`` ``[O, I]``, its range scaled by ``shrink`` (``[O, G]`` or a number).

    The range always holds zero (unless the zero is real), so that a zero weight stays zero. Scales are rounded to the
    precision they are stored in before anything is quantized with them. A weight that is not finite is a ValueError.
    """
    rows, columns = format.groups((weight.shape[0], weight.shape[1]))
    grouped = weight.reshape(rows, columns, -1)
    low, high = grouped.amin(dim=2), grouped.amax(dim=2)
    # An infinite value or NaN anywhere in a group is at one of its ends.
    if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
        raise ValueError("the weight has values that are not finite")
    return grid_over(low * shrink, high * shrink, format)


def grid_over(low: Tensor, high: Tensor, format: Format) -> Grid:
    """The grid of groups whose weights run from ``low`` to ``high``, each ``[O, G]``; ``fit_grid`` says the rest."""
    if format.symmetric:
        # Codes run over [0, max_code] about the middle code, so one step more lies below zero than above.
        scale = storable_scale(torch.maximum(-low, high) * 2 / format.max_code, format)
        return Grid(scale, torch.full_like(scale, (format.max_code + 1) // 2), format)
    if format.real_zero:
        # A narrow range far from zero would need a zero beyond its precision's largest number: its step is widened.
        smallest = low.abs() / LARGEST_ZERO[format.scale_dtype]
        scale = storable_scale(torch.maximum((high - low) / format.max_code, smallest), format)
        return Grid(scale, _round_to(-low / scale, format.scale_dtype), format)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = storable_scale((high - low) / format.max_code, format)
    return Grid(scale, torch.round(-low / scale).clamp(0, format.max_code), format)


def storable_scale(scale: Tensor, format: Format) -> Tensor:
    """Round ``scale`` to what ``format`` stores; zeros and negative values become the scale of a group of zeros.

    A scale that float32 cannot hold is a ValueError.
    """
    if not torch.isfinite(scale).all():
        raise ValueError("a scale is beyond what float32 holds; the weights are too large")
    smallest = torch.finfo(torch.float32).tiny
    if format.scale_dtype is torch.float32:
        return _round_to(scale.clamp(min=smallest), torch.float32)
    return _round_to_half_digits(torch.where(scale > 0, scale.clamp(min=smallest), SCALE_OF_ZEROS))


def _round_to_half_digits(value: Tensor) -> Tensor:
    """Round positive normal numbers to a half's 11 significant bits, ties to even, without a half's limits."""
    integer, dropped = {torch.float32: (torch.int32, 13), torch.float64: (torch.int64, 42)}[value.dtype]
    bits = value.contiguous().view(integer)
    # A number's bits in order are those of an integer: what is carried out of the digits raises the exponent.
    bits = bits + (2 ** (dropped - 1) - 1) + ((bits >> dropped) & 1)
    return ((bits >> dropped) << dropped).view(value.dtype)


def scale_exponents(scale: Tensor) -> Tensor | None:
    """Exponents of the powers of two that bring ``scale`` ``[O, G]`` among the normal halves; ``None`` if it is there.

    One for all groups (``[1, 1]``) where that suffices, else one a group (``[O, G]``).
    """
    if not scale.numel() or (scale.min() >= SMALLEST_HALF and scale.max() <= LARGEST_HALF):
        return None
    exponents = torch.frexp(scale.float()).exponent.to(torch.int16) - 1
    shift = exponents.max() - LARGEST_EXPONENT
    if exponents.min() - shift >= SMALLEST_EXPONENT:
        return shift.reshape(1, 1)
    return exponents


def _times_power_of_two(value: Tensor, exponents: Tensor) -> Tensor:
    """``value`` times ``2**exponents`` in float64, exact."""
    return value.double() * ((exponents.to(torch.int64) + 1023) << 52).view(torch.float64)


def _round_to(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype).to(value.dtype)


@dataclass(frozen=True)
class QuantizedWeight:
    """One quantized weight: ``codes`` uint8 ``[O, I]``, the ``grid`` and, for AWQ, ``input_scale`` ``[I]`` in float16."""

    codes: Tensor
    grid: Grid
    input_scale: Tensor | None = None

    @property
    def format(self) -> Format:
        return self.grid.format

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def exponents(self) -> int:
        """How many powers of two are stored beside the scales."""
        found = scale_exponents(self.grid.scale) if self.format.scale_dtype is torch.float16 else None
        return 0 if found is None else found.numel()

    def times_power_of_two(self, exponent: int) -> QuantizedWeight:
        """The same codes on a grid whose steps are ``2**exponent`` times as large."""
        # In two steps, neither of which leaves float32 where the result does not.
        scale = self.grid.scale * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)
        return QuantizedWeight(self.codes, Grid(scale, self.grid.zero, self.format), self.input_scale)

    def dequantize(self) -> Tensor:
        """The weight ``[O, I]`` that the codes stand for, in the grid's working precision."""
        scale, zero = self.grid.scale, self.grid.zero
        grouped = self.codes.to(scale.dtype).reshape(*scale.shape, -1)
        weight = grouped.sub_(zero[:, :, None]).mul_(scale[:, :, None]).reshape(self.shape)
        return weight if self.input_scale is None else weight / self.input_scale.to(scale.dtype)

    def pack(self) -> dict[str, Tensor]:
        """The tensors that are stored; together they have ``format.stored_bits(shape, ...)`` bits."""
        scale = self.grid.scale
        exponents = scale_exponents(scale) if self.format.scale_dtype is torch.float16 else None
        stored = {"codes": pack_codes(self.codes, self.format.bits)}
        if exponents is not None:
            stored["exponent"] = exponents
            scale = _times_power_of_two(scale, -exponents)
        stored["scale"] = scale.to(self.format.scale_dtype)
        if self.format.real_zero:
            stored["zero"] = self.grid.zero.to(self.format.scale_dtype)
        elif not self.format.symmetric:
            stored["zero"] = pack_codes(self.grid.zero.to(torch.uint8), self.format.bits)
        if self.input_scale is not None:
            stored["input_scale"] = self.input_scale.to(torch.float16)
        return stored

    @staticmethod
    def unpack(stored: dict[str, Tensor], shape: tuple[int, int], format: Format) -> QuantizedWeight:
        """What ``pack`` made, back, with the grid in float32."""
        groups = format.groups(shape)
        scale = stored["scale"].to(torch.float32)
        if "exponent" in stored:
            scale = _times_power_of_two(scale, stored["exponent"]).to(torch.float32)
        if format.symmetric:
            zero = torch.full_like(scale, (format.max_code + 1) // 2)
        elif format.real_zero:
            zero = stored["zero"].to(torch.float32)
        else:
            zero = unpack_codes(stored["zero"], groups, format.bits).to(torch.float32)
        codes = unpack_codes(stored["codes"], shape, format.bits)
        return QuantizedWeight(codes, Grid(scale, zero, format), stored.get("input_scale"))


def round_to_grid(weight: Tensor, grid: Grid) -> Tensor:
    """The nearest code of every weight ``[O, I]``, uint8 ``[O, I]``."""
    codes = weight.reshape(*grid.scale.shape, -1) / grid.scale[:, :, None]
    codes = codes.add_(grid.zero[:, :, None]).round_().clamp_(0, grid.format.max_code)
    return codes.to(torch.uint8).reshape(weight.shape)


def round_nearest(weight: Tensor, format: Format) -> QuantizedWeight:
    """``weight`` ``[O, I]`` rounded to the nearest point of each group's min/max grid."""
    weight = weight.float()
    grid = fit_grid(weight, format)
    return QuantizedWeight(round_to_grid(weight, grid), grid)


def packed_size(count: int, bits: int) -> int:
    """Bytes that ``count`` codes of ``bits`` bits fill."""
    return (count * bits + 7) // 8


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """``codes`` below ``2**bits``, of any shape, as a flat uint8 tensor of ``packed_size(codes.numel(), bits)`` bytes.

    Eight codes fill ``bits`` whole bytes, little end first, for every width from 2 to 8.
    """
    flat = codes.reshape(-1)
    if flat.numel() and (int(flat.max()) >= 2**bits or int(flat.min()) < 0):
        wrong = int(flat.max()) if int(flat.max()) >= 2**bits else int(flat.min())
        raise ValueError(f"a code of {wrong} does not fit into {bits} bits")
    if bits == 8:
        return flat.to(torch.uint8, copy=True)
    eights = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).reshape(-1, 8)
    octets = torch.zeros(len(eights), bits, dtype=torch.uint8, device=codes.device)
    # In bytes throughout: wider words would take eight times the memory of the codes.
    for code, octet, shift in _overlaps(bits):
        part = eights[:, code]
        octets[:, octet] |= part << shift if shift >= 0 else part >> -shift
    return octets.reshape(-1)[: packed_size(flat.numel(), bits)].clone()


def unpack_codes(packed: Tensor, shape: tuple[int, ...], bits: int) -> Tensor:
    """What ``pack_codes`` made, back to uint8 codes of ``shape``; a wrong number of bytes is a ValueError."""
    count = math.prod(shape)
    if packed.numel() != packed_size(count, bits):
        raise ValueError(
            f"{packed.numel()} bytes hold no {count} codes of {bits} bits ({packed_size(count, bits)} bytes)"
        )
    if bits == 8:
        return packed.reshape(shape).clone()
    octets = torch.nn.functional.pad(packed, (0, -packed.numel() % bits)).reshape(-1, bits)
    eights = torch.zeros(len(octets), 8, dtype=torch.uint8, device=packed.device)
    for code, octet, shift in _overlaps(bits):
        part = octets[:, octet]
        eights[:, code] |= part >> shift if shift >= 0 else part << -shift
    return eights.bitwise_and_(2**bits - 1).reshape(-1)[:count].reshape(shape)


def _overlaps(bits: int) -> list[tuple[int, int, int]]:
    """Which of eight codes has bits in which of their ``bits`` bytes, and by how much it is shifted up there."""
    return [
        (code, octet, bits * code - 8 * octet)
        for code in range(8)
        for octet in range(bits)
        if -bits < bits * code - 8 * octet < 8
    ]
