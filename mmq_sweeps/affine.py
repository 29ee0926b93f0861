"""Affine quantization of a weight matrix: formats, grids, codes, packing and exact sizes.

A weight ``W`` ``[O, I]`` (output features x input features) is stored as integer codes ``q`` on one grid a group:
``W ~ scale * (q - zero)``. Groups are consecutive input columns of one output row; ``channel`` is one group a row and
``tensor`` one for the whole matrix. AWQ (arXiv 2306.00978) stores ``W * s`` with one input scale ``s`` a column, so that
``W ~ scale * (q - zero) / s``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_BITS, MAX_BITS = 2, 8
# The smallest normal half: a group whose weights are all (nearly) equal still gets a scale that float16 can hold.
SMALLEST_SCALE = 2.0**-14
LARGEST_SCALE = 65504.0
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

    def stored_bits(self, shape: tuple[int, int], input_scaled: bool = False) -> int:
        """Exact size in bits of a weight of this ``shape`` ``[O, I]``: whole bytes of codes and zeros, scales, input scales."""
        rows, columns = shape
        group_rows, group_columns = self.groups(shape)
        count = group_rows * group_columns
        scale_bits = 32 if self.scale_dtype is torch.float32 else 16
        bits = 8 * packed_size(rows * columns, self.bits) + scale_bits * count
        if self.real_zero:
            bits += scale_bits * count
        elif not self.symmetric:
            bits += 8 * packed_size(count, self.bits)
        return bits + (16 * columns if input_scaled else 0)


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
    """``scale`` rounded as ``format`` stores it, and no smaller than what that can hold; a ValueError if it is larger."""
    if format.scale_dtype is torch.float32:
        return _round_to(scale.clamp(min=torch.finfo(torch.float32).tiny), torch.float32)
    if scale.max() > LARGEST_SCALE:
        raise ValueError(f"a scale of {scale.max().item():.3g} exceeds what float16 holds; the weights are too large")
    return _round_to(scale.clamp(min=SMALLEST_SCALE), torch.float16)


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

    def dequantize(self) -> Tensor:
        """The weight ``[O, I]`` that the codes stand for, in the grid's working precision."""
        scale, zero = self.grid.scale, self.grid.zero
        grouped = self.codes.to(scale.dtype).reshape(*scale.shape, -1)
        weight = grouped.sub_(zero[:, :, None]).mul_(scale[:, :, None]).reshape(self.shape)
        return weight if self.input_scale is None else weight / self.input_scale.to(scale.dtype)

    def pack(self) -> dict[str, Tensor]:
        """The tensors that are stored; together they have ``format.stored_bits(shape)`` bits."""
        stored = {
            "codes": pack_codes(self.codes, self.format.bits),
            "scale": self.grid.scale.to(self.format.scale_dtype),
        }
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
