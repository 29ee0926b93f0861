"""Storage format of a weight matrix: bits, groups, zeros or a codebook, and the exact number of bits it takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from mmq_sweeps.methods.formats.packing import packed_size

MIN_BITS, MAX_BITS = 2, 8
EXPONENT_BITS = 16
# Codebooks: values of each row's own, and the fixed ones of NF2 to NF4.
ROWS, NORMAL_FLOAT = "rows", "normal_float"
LARGEST_NORMAL_FLOAT = 4
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
