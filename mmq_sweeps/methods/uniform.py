"""The study's uniform quantization (arXiv 2601.15287): a grid per tensor, from its minimum to its maximum.

The zero is real rather than an integer code, so both ends of the range are exact and 0 need not lie on the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmq_sweeps.methods.base import LayerStats, Solution
from mmq_sweeps.methods.formats import Format, round_nearest


@dataclass(frozen=True)
class Uniform:
    """Per-tensor min/max rounding; no calibration and no fields."""

    known_as: ClassVar[str] = "uniform"
    needs_statistics: ClassVar[bool] = False

    def format(self, bits: int) -> Format:
        return Format(bits, "tensor", real_zero=True)

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:  # noqa: ARG002
        return Solution([round_nearest(weight, format) for weight in weights], {})
