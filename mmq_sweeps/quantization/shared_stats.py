"""Statistics of an input and of the linears that it feeds."""

from __future__ import annotations

from dataclasses import dataclass

from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.quantization.folding import Fold


@dataclass(frozen=True)
class SharedStats:
    """Statistics of an input, the full names of the linears that it feeds, and its number of tokens that are not finite.

    ``fold`` says where a scale of the input can go; None if there is no such place, and behind quantized units.
    """

    linears: tuple[str, ...]
    stats: LayerStats
    not_finite: int = 0
    fold: Fold | None = None
