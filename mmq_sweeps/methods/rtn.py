"""Round to nearest on a min/max grid: the baseline that every calibrated method must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmq_sweeps.methods.base import GroupedMethod, LayerStats, Solution
from mmq_sweeps.methods.formats import Format, round_nearest


@dataclass(frozen=True)
class RoundToNearest(GroupedMethod):
    """Rounding of each weight to the nearest point of its group's min/max grid; no calibration."""

    known_as: ClassVar[str] = "rtn"
    needs_statistics: ClassVar[bool] = False

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:  # noqa: ARG002
        return Solution([round_nearest(weight, format) for weight in weights], {})
