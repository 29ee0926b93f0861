"""AWQ (arXiv 2306.00978): protect the columns with large activations by scaling them up before rounding.

Both searches minimise the layer's squared output error over all calibration tokens, a quadratic form in the Gram matrix
``G`` ``[I, I]`` of its inputs: ``sum_o e_o G e_o^T`` for the weight error ``e`` ``[O, I]``. No tokens are rerun.
Linears that share an input share the scale with the least sum of their errors, each relative to its weight's size. With
``fuse`` only scales are searched that the caller can fold into the layer before. Without, the scale is stored beside the
codes (``Q(W s) / s``), so it works for a linear anywhere in a model, but no format that others load holds it. Rows are
processed in chunks: nothing of the weight's size is allocated but its codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from mmq_sweeps.identity.roles import UNLESS_NULL
from mmq_sweeps.methods.awq_search.clip import best_clipped
from mmq_sweeps.methods.awq_search.scales import Scale, search_scale, search_scales
from mmq_sweeps.methods.base import GroupedMethod, LayerStats, Solution, check_vision_weight
from mmq_sweeps.methods.formats import MAX_BITS, Format


@dataclass(frozen=True)
class AWQ(GroupedMethod):
    """Scale search over ``n_grid`` exponents, then a clip search over ``clip_steps`` ranges (0: no clipping).

    Ranges are clipped by less than the share ``max_shrink``. With ``fuse``, weights whose input scale cannot be folded into
    the layer before (``LayerStats.foldable``) get none, and the caller folds those of the others. ``vision_weight`` is the
    share of vision tokens in the statistics that the caller gives.
    """

    n_grid: int = 20
    duo_scaling: bool = True
    clip_steps: int = 10
    max_shrink: float = 0.5
    fuse: bool = False  # Off for a caller that folds nothing; conf/method/awq.yaml turns it on.
    vision_weight: float | None = field(default=None, metadata=UNLESS_NULL)

    known_as: ClassVar[str] = "awq"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_vision_weight(self.vision_weight)
        if self.n_grid < 1:
            raise ValueError(f"n_grid={self.n_grid!r}: choose at least one exponent")
        if self.clip_steps < 0 or not 0 <= self.max_shrink < 1:
            raise ValueError(
                f"clip_steps={self.clip_steps!r} must be 0 or more, max_shrink={self.max_shrink!r} in [0, 1)"
            )

    @property
    def input_scaled(self) -> bool:
        """True if scales of input columns are stored beside the codes."""
        return not self.fuse

    def quantize(self, weights: Sequence[Tensor], stats: LayerStats | None, format: Format) -> Solution:
        return self.quantize_many(weights, stats, [format])[0]

    def quantize_many(
        self, weights: Sequence[Tensor], stats: LayerStats | None, formats: Sequence[Format]
    ) -> list[Solution]:
        """Quantize ``weights`` to each of ``formats``; those that differ only in bits share candidate scales and ranges."""
        if stats is None:
            raise ValueError("AWQ needs the statistics of the layer's inputs")
        if not torch.isfinite(stats.gram.diagonal()).all():
            raise ValueError("the Gram matrix of the calibration inputs has values that are not finite")
        if not all(torch.isfinite(weight.amax() - weight.amin()) for weight in weights):
            raise ValueError("the weight has values that are not finite")
        solutions: dict[Format, Solution] = {}
        for alike in _alike(formats):
            for format, scales in zip(alike, self.scales(weights, stats, alike), strict=True):
                scale, quantized = best_clipped(weights, scales, stats.gram, format, self.cuts())
                if self.fuse and not stats.foldable:
                    quantized = [replace(weight, input_scale=None) for weight in quantized]
                solutions[format] = Solution(quantized, {"scale_exponent": scale.exponent})
        return [solutions[format] for format in formats]

    def scales(self, weights: Sequence[Tensor], stats: LayerStats, alike: Sequence[Format]) -> list[list[Scale]]:
        """Return for each format the scales to clip; without clipping, only the best."""
        if self.fuse and not stats.foldable:
            return [[Scale(torch.ones_like(stats.mean_abs), 0.0)] for _ in alike]
        if self.clip_steps:
            return search_scales(weights, stats, alike, self.n_grid, self.duo_scaling)
        return [[scale] for scale in search_scale(weights, stats, alike, self.n_grid, self.duo_scaling)]

    def cuts(self) -> list[float]:
        """Return the clip ratios to try; always starts with 1 (no clipping), alone if ``clip_steps`` is 0."""
        return [1 - self.max_shrink * step / max(self.clip_steps, 1) for step in range(max(self.clip_steps, 1))]


def _alike(formats: Sequence[Format]) -> list[list[Format]]:
    """Group distinct formats that differ only in their bits."""
    found: dict[Format, list[Format]] = {}
    for format in dict.fromkeys(formats):
        found.setdefault(replace(format, bits=MAX_BITS), []).append(format)
    return list(found.values())
