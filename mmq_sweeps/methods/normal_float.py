"""Normal floats: NF2, NF3 and NF4 of QLoRA (Dettmers et al. 2023, arXiv 2305.14314), without calibration.

Each group is divided by its largest magnitude, and each weight takes the nearest of ``2**bits`` fixed values, which normal
weights take about equally often.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mmq_sweeps.methods.base import LayerStats, Solution
from mmq_sweeps.methods.formats import (
    NORMAL_FLOAT,
    Format,
    QuantizedWeight,
    check_finite,
    check_group_size,
    codebook_grid,
    round_to_grid,
)


def solve(weight: Tensor, format: Format) -> QuantizedWeight:
    """Quantize ``weight`` ``[O, I]`` to the fixed values, times the largest magnitude of each group.

    Raises ValueError if the weight is not finite.
    """
    weight = weight.float()
    rows, columns = format.groups((weight.shape[0], weight.shape[1]))
    scale = weight.reshape(rows, columns, -1).abs().amax(dim=2)
    check_finite(scale)
    grid = codebook_grid(scale, format)
    return QuantizedWeight(round_to_grid(weight, grid), grid)


@dataclass(frozen=True)
class NormalFloat:
    """Round to a normal float of 2 to 4 bits, by groups of 64 columns as published."""

    group_size: int | str = 64

    known_as: ClassVar[str] = "normal_float"
    needs_statistics: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_group_size(self.group_size)

    def format(self, bits: int) -> Format:
        return Format(bits, self.group_size, codebook=NORMAL_FLOAT)

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:  # noqa: ARG002
        return Solution([solve(weight, format) for weight in weights], {})
