"""Affine quantization of a weight matrix: formats, grids, codes, packing and exact sizes.

A weight ``W`` ``[O, I]`` (output x input features) is stored as integer codes ``q`` with a scale and a zero per group:
``W ~ scale * (q - zero)``. A group is a run of ``group_size`` input columns in a row, a whole row (``channel``) or the
whole matrix (``tensor``). AWQ (arXiv 2306.00978) stores ``W * s`` with an input scale ``s`` per column, so that ``W ~
scale * (q - zero) / s``. A format with a codebook has values in place of even steps: ``W ~ scale * values[q]``, the same
for a row or for all weights (``methods/codebooks.py``).

Scales are values of the dtype in which the model computes, so that a loader that multiplies codes and scales in that
dtype gets the weight that was measured, bit for bit. In bfloat16 and float32 multiplying a weight by a power of two does
not change its codes. For a model in float32, scales of rows and groups have the 11 significant bits of a half at any
exponent: they are stored as halves times powers of two, and the powers are omitted if the halves alone can hold a
weight's scales.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from mmq_sweeps.methods import codebooks

MIN_BITS, MAX_BITS = 2, 8
# Normal halves lie from 2**-14 to below 2**16.
SMALLEST_HALF, LARGEST_HALF = 2.0**-14, 65504.0
LARGEST_EXPONENT, SMALLEST_EXPONENT = 15, -14
# The least half is subnormal: below normal halves, scales have fewer digits.
LEAST_HALF = 2.0**-24
# Any scale represents a group of zeros.
SCALE_OF_ZEROS = SMALLEST_HALF
EXPONENT_BITS = 16
# Codebooks: values of each row's own, and the fixed ones of NF2 to NF4.
ROWS, NORMAL_FLOAT = "rows", "normal_float"
LARGEST_NORMAL_FLOAT = 4
LOOKED_UP_ROWS = 512
# Bounds on real zeros, in grid steps. Storing a zero changes it by at most 2**-11 (float32: 2**-24) of itself.
LARGEST_ZERO = {torch.float16: 2.0**15, torch.float32: 2.0**23}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Format:
    """Storage format of a weight matrix, e.g. ``Format(bits=3, group_size="channel")`` or ``Format(4, 128, symmetric=True)``.

    ``real_zero`` stores the zero as a float instead of an integer code, so that the grid spans the group's minimum to
    maximum, as min/max quantization without an integer zero point does. ``dtype`` is the one in which the model computes,
    of which scales are values. ``codebook`` is ``rows`` for values of each row's own, in the dtype of scales beside them, and
    ``normal_float`` for the fixed ones.
    """

    bits: int
    group_size: int | str = "channel"
    symmetric: bool = False
    real_zero: bool = False
    dtype: str = "float32"
    codebook: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(f"bits={self.bits!r}: a format has {MIN_BITS} to {MAX_BITS} bits")
        check_group_size(self.group_size)
        if self.symmetric and self.real_zero:
            raise ValueError("symmetric=True and real_zero=True exclude each other: a symmetric grid stores no zero")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r}: choose {', '.join(DTYPES)}")
        if self.codebook is not None:
            self._check_codebook()

    def _check_codebook(self) -> None:
        if self.codebook not in (ROWS, NORMAL_FLOAT):
            raise ValueError(f"codebook={self.codebook!r}: choose {ROWS}, {NORMAL_FLOAT} or None")
        if self.symmetric or self.real_zero:
            raise ValueError("a codebook takes no symmetric=True and no real_zero=True: its values have no zero point")
        if self.codebook == ROWS and self.group_size != "channel":
            raise ValueError(f"group_size={self.group_size!r}: each row has a codebook of its own; choose channel")
        if self.codebook == NORMAL_FLOAT and self.bits > LARGEST_NORMAL_FLOAT:
            widths = f"{MIN_BITS} to {LARGEST_NORMAL_FLOAT}"
            raise ValueError(
                f"bits={self.bits}: method normal_float has {widths} bits; choose these, or another method"
            )

    def fields(self) -> dict[str, object]:
        """Return the fields as keys hold them; a format without a codebook has no such field."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def max_code(self) -> int:
        return 2**self.bits - 1

    def groups(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the rows and columns of scales for a weight of ``shape`` ``[O, I]``.

        Raises ValueError if groups do not divide the columns.
        """
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
        """Storage dtype of scales: the model's, but float16 for the many scales of rows and groups of a model in float32."""
        return torch.float16 if self.has_exponents else DTYPES[self.dtype]

    @property
    def has_exponents(self) -> bool:
        """True if powers of two may be stored beside the scales."""
        return self.dtype == "float32" and self.group_size != "tensor"

    @property
    def has_zeros(self) -> bool:
        """True if a zero is stored beside each scale."""
        return self.codebook is None and not self.symmetric

    @property
    def zero_dtype(self) -> torch.dtype:
        """Storage dtype of real zeros: float32 for a single one per tensor, whose cost is negligible; otherwise float16."""
        return torch.float32 if self.group_size == "tensor" else torch.float16

    def stored_bits(self, shape: tuple[int, int], input_scaled: bool = False, exponents: int = 0) -> int:
        """Return the exact bits of a weight of ``shape`` ``[O, I]``: codes and zeros in whole bytes, scales, input scales.

        ``exponents`` is the number of powers of two stored beside the scales (``QuantizedWeight.exponents``).
        """
        rows, columns = shape
        group_rows, group_columns = self.groups(shape)
        count = group_rows * group_columns
        bits = 8 * packed_size(rows * columns, self.bits) + 8 * self.scale_dtype.itemsize * count
        if self.real_zero:
            bits += 8 * self.zero_dtype.itemsize * count
        elif self.codebook == ROWS:
            bits += 8 * self.scale_dtype.itemsize * rows * 2**self.bits
        elif self.has_zeros:
            bits += 8 * packed_size(count, self.bits)
        return bits + (16 * columns if input_scaled else 0) + EXPONENT_BITS * exponents


def check_group_size(group_size: int | str) -> None:
    """Raise a ValueError naming the choices unless ``group_size`` is ``tensor``, ``channel`` or a positive integer."""
    if group_size in ("tensor", "channel"):
        return
    if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
        raise ValueError(f"group_size={group_size!r}: choose tensor, channel or a positive number of input columns")


def _divisors(columns: int) -> str:
    sizes = [size for size in (16, 32, 64, 128, 256) if columns % size == 0]
    return f"sizes that do: {', '.join(map(str, sizes))}, channel, tensor" if sizes else "use channel or tensor"


@dataclass(frozen=True)
class Grid:
    """Scales and zeros of a weight's groups as stored, each ``[O, G]`` (``[1, 1]`` for ``tensor``).

    With a codebook, ``values`` ``[O or 1, 2**bits]`` are what codes stand for, ascending, and zeros are 0.
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
        return Grid(scale, _round_to(-low / scale, format.zero_dtype), format)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = storable_scale((high - low) / format.max_code, format)
    return Grid(scale, torch.round(-low / scale).clamp(0, format.max_code), format)


def storable_scale(scale: Tensor, format: Format) -> Tensor:
    """Round ``scale`` to the precision that ``format`` stores; scales of zero or less become a small positive number.

    Scales beyond half precision become the least or the largest half: weights of a model in float16 have none, so only a
    candidate is the worse for it. Raises ValueError if float32 cannot hold a scale.
    """
    if not torch.isfinite(scale).all():
        raise ValueError("a scale is beyond what float32 holds; the weights are too large")
    smallest = torch.finfo(torch.float32).tiny
    if format.scale_dtype is torch.float32:
        return _round_to(scale.clamp(min=smallest), torch.float32)
    if format.has_exponents:
        return _round_to_half_digits(torch.where(scale > 0, scale.clamp(min=smallest), SCALE_OF_ZEROS))
    dtype = format.scale_dtype
    least = LEAST_HALF if dtype is torch.float16 else smallest
    return _round_to(torch.where(scale > 0, scale.clamp(least, torch.finfo(dtype).max), SCALE_OF_ZEROS), dtype)


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


def _times_power_of_two(value: Tensor, exponents: Tensor) -> Tensor:
    """Return ``value * 2**exponents`` in float64, exactly."""
    return value.double() * ((exponents.to(torch.int64) + 1023) << 52).view(torch.float64)


def _round_to(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype).to(value.dtype)


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantized weight: ``codes`` uint8 ``[O, I]``, ``grid`` and, for AWQ, ``input_scale`` float16 ``[I]``."""

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
        """Number of powers of two stored beside the scales."""
        found = self._exponents()
        return 0 if found is None else found.numel()

    def _exponents(self) -> Tensor | None:
        return scale_exponents(self.grid.scale) if self.format.has_exponents else None

    def times_power_of_two(self, exponent: int) -> QuantizedWeight:
        """Return the same codes on a grid with steps ``2**exponent`` times as large."""
        return QuantizedWeight(self.codes, self.grid.times_power_of_two(exponent), self.input_scale)

    def dequantize(self) -> Tensor:
        """Return the weight ``[O, I]`` that the codes represent, in the grid's working precision."""
        scale, zero = self.grid.scale, self.grid.zero
        if self.grid.values is not None:
            return self._looked_up(self.grid.values)
        grouped = self.codes.to(scale.dtype).reshape(*scale.shape, -1)
        weight = grouped.sub_(zero[:, :, None]).mul_(scale[:, :, None]).reshape(self.shape)
        return weight if self.input_scale is None else weight / self.input_scale.to(scale.dtype)

    def _looked_up(self, values: Tensor) -> Tensor:
        """Return the weight of a codebook."""
        scale = self.grid.scale
        found = torch.empty(self.shape, dtype=scale.dtype, device=scale.device)
        # In chunks, because places to look up take eight bytes each.
        for rows, codes, own in zip(
            found.split(LOOKED_UP_ROWS),
            self.codes.split(LOOKED_UP_ROWS),
            values.to(scale.dtype).expand(len(self.codes), -1).split(LOOKED_UP_ROWS),
            strict=True,
        ):
            torch.gather(own, 1, codes.long(), out=rows)
        return found.reshape(*scale.shape, -1).mul_(scale[:, :, None]).reshape(self.shape)

    def pack(self) -> dict[str, Tensor]:
        """Return the tensors to store, ``format.stored_bits(shape, ...)`` bits in total."""
        scale = self.grid.scale
        exponents = self._exponents()
        stored = {"codes": pack_codes(self.codes, self.format.bits)}
        if exponents is not None:
            stored["exponent"] = exponents
            scale = _times_power_of_two(scale, -exponents)
        stored["scale"] = scale.to(self.format.scale_dtype)
        if self.format.real_zero:
            stored["zero"] = self.grid.zero.to(self.format.zero_dtype)
        elif self.format.codebook == ROWS and self.grid.values is not None:
            stored["values"] = self.grid.values.to(self.format.scale_dtype)
        elif self.format.has_zeros:
            stored["zero"] = pack_codes(self.grid.zero.to(torch.uint8), self.format.bits)
        if self.input_scale is not None:
            stored["input_scale"] = self.input_scale.to(torch.float16)
        return stored

    @staticmethod
    def unpack(stored: dict[str, Tensor], shape: tuple[int, int], format: Format) -> QuantizedWeight:
        """Restore a weight from ``pack``'s tensors, with the grid in float32."""
        groups = format.groups(shape)
        scale = stored["scale"].to(torch.float32)
        if "exponent" in stored:
            scale = _times_power_of_two(scale, stored["exponent"]).to(torch.float32)
        values = None
        if format.codebook is not None:
            zero, values = torch.zeros_like(scale), _values(stored, format, scale)
        elif format.symmetric:
            zero = torch.full_like(scale, (format.max_code + 1) // 2)
        elif format.real_zero:
            zero = stored["zero"].to(torch.float32)
        else:
            zero = unpack_codes(stored["zero"], groups, format.bits).to(torch.float32)
        codes = unpack_codes(stored["codes"], shape, format.bits)
        return QuantizedWeight(codes, Grid(scale, zero, format, values), stored.get("input_scale"))


def _values(stored: dict[str, Tensor], format: Format, scale: Tensor) -> Tensor:
    if format.codebook == ROWS:
        return stored["values"].to(torch.float32)
    return codebooks.normal_float(format.bits).to(scale.device)[None]


def codebook_grid(scale: Tensor, format: Format, values: Tensor | None = None) -> Grid:
    """Return the grid of a ``format`` with a codebook: ``values`` ``[O, 2**bits]`` as stored, or the fixed ones.

    ``scale`` ``[O, G]`` is rounded as it is stored.
    """
    scale = storable_scale(scale, format)
    if values is None:
        values = codebooks.normal_float(format.bits).to(scale.device)[None]
    else:
        values = _round_to(values, format.scale_dtype)
    return Grid(scale, torch.zeros_like(scale), format, values)


def round_to_grid(weight: Tensor, grid: Grid) -> Tensor:
    """Return the nearest code of every weight ``[O, I]``, as uint8 ``[O, I]``."""
    if grid.values is not None:
        relative = (weight.reshape(*grid.scale.shape, -1) / grid.scale[:, :, None]).reshape(weight.shape)
        return codebooks.nearest(grid.values, relative)
    codes = weight.reshape(*grid.scale.shape, -1) / grid.scale[:, :, None]
    codes = codes.add_(grid.zero[:, :, None]).round_().clamp_(0, grid.format.max_code)
    return codes.to(torch.uint8).reshape(weight.shape)


def divided_rows(quantized: QuantizedWeight, weight: Tensor, divisor: Tensor) -> QuantizedWeight:
    """Return ``quantized`` for its ``weight`` ``[O, I]`` with each row divided by ``divisor`` ``[O]``.

    The grids are divided, and the divided weight is rounded to them: scales may lose digits. Not for ``tensor`` grids.
    """
    own = quantized.grid
    grid = Grid(storable_scale(own.scale / divisor[:, None], own.format), own.zero, own.format)
    return QuantizedWeight(round_to_grid(weight / divisor[:, None], grid), grid, quantized.input_scale)


def round_nearest(weight: Tensor, format: Format) -> QuantizedWeight:
    """Round ``weight`` ``[O, I]`` to the nearest point of each group's min/max grid."""
    weight = weight.float()
    grid = fit_grid(weight, format)
    return QuantizedWeight(round_to_grid(weight, grid), grid)


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that ``count`` codes of ``bits`` bits occupy."""
    return (count * bits + 7) // 8


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack codes of any shape into a flat uint8 tensor of ``packed_size(codes.numel(), bits)`` bytes.

    Eight codes fill ``bits`` whole bytes, little-endian, for every width from 2 to 8. Raises ValueError for a code
    outside ``[0, 2**bits)``.
    """
    flat = codes.reshape(-1)
    if flat.numel() and (int(flat.max()) >= 2**bits or int(flat.min()) < 0):
        wrong = int(flat.max()) if int(flat.max()) >= 2**bits else int(flat.min())
        raise ValueError(f"a code of {wrong} does not fit into {bits} bits")
    if bits == 8:
        return flat.to(torch.uint8, copy=True)
    eights = torch.nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).reshape(-1, 8)
    octets = torch.zeros(len(eights), bits, dtype=torch.uint8, device=codes.device)
    # Work in bytes: 64-bit words would take eight times the memory of the codes.
    for code, octet, shift in _overlaps(bits):
        part = eights[:, code]
        octets[:, octet] |= part << shift if shift >= 0 else part >> -shift
    return octets.reshape(-1)[: packed_size(flat.numel(), bits)].clone()


def unpack_codes(packed: Tensor, shape: tuple[int, ...], bits: int) -> Tensor:
    """Unpack ``pack_codes`` output to uint8 codes of ``shape``; ValueError if the number of bytes is wrong."""
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
    """List ``(code, byte, left shift)`` for each overlap of eight codes with the ``bits`` bytes that store them."""
    return [
        (code, octet, bits * code - 8 * octet)
        for code in range(8)
        for octet in range(bits)
        if -bits < bits * code - 8 * octet < 8
    ]
