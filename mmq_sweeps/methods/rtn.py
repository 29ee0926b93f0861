"""Round to nearest on a min/max grid: the baseline that every calibrated method must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmq_sweeps.methods.base import LayerStats, Solution
from mmq_sweeps.methods.formats import Format, QuantizedWeight, check_group_size, round_nearest


@dataclass(frozen=True)
class RoundToNearest:
    """Rounding of each weight to the nearest point of its group's min/max grid; no calibration."""

    group_size: int | str = "channel"
    symmetric: bool = False

    known_as: ClassVar[str] = "rtn"
    needs_statistics: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_group_size(self.group_size)

    def format(self, bits: int) -> Format:
        return Format(bits, self.group_size, self.symmetric)

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:  # noqa: ARG002
        quantized: list[QuantizedWeight] = [round_nearest(weight, format) for weight in weights]
        return Solution(quantized, {})
