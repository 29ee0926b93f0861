"""Candidate input scales, and the search for those with the least loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmq_sweeps.methods.awq_search.errors import chunks, grouped
from mmq_sweeps.methods.awq_search.race import Trial, race, stretches
from mmq_sweeps.methods.base import LayerStats
from mmq_sweeps.methods.formats import Format
from mmq_sweeps.methods.magnitude import divided, exponent_of

# Scales that enter the clip search.
CARRIED = 3
SMALLEST_INPUT_SCALE, LARGEST_INPUT_SCALE = 2.0**-14, 65504.0


@dataclass(frozen=True)
class Scale:
    """An input scale ``[I]``, rounded to float16, and its exponent."""

    values: Tensor
    exponent: float


def candidate_scales(
    weights: Sequence[Tensor], mean_abs: Tensor, format: Format, n_grid: int, duo_scaling: bool
) -> list[Scale]:
    """Return the scales to try: ones, then ``mean_abs ** r / w_mean ** (1 - r)`` for ``r = k / n_grid``.

    Without ``duo_scaling`` the division is left out. ``w_mean`` ``[I]`` is the mean over all rows of a weight's
    magnitude relative to the largest in its group. As in autoawq, a scale is normalised to a geometric mid-range of 1.
    The lower bound on scales is relative to the largest input.
    """
    mean_abs = divided(mean_abs, exponent_of(mean_abs))
    w_mean = _mean_relative_magnitude(weights, format) if duo_scaling else None
    candidates = [Scale(torch.ones_like(mean_abs), 0.0)]
    for ratio in (k / n_grid for k in range(0 if duo_scaling else 1, n_grid)):
        scale = mean_abs.pow(ratio)
        if w_mean is not None:
            scale = scale / (w_mean.pow(1 - ratio) + 1e-4)
        scale = scale.clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        stored = scale.clamp(SMALLEST_INPUT_SCALE, LARGEST_INPUT_SCALE).to(torch.float16).float()
        candidates.append(Scale(stored, ratio))
    return candidates


def _mean_relative_magnitude(weights: Sequence[Tensor], format: Format) -> Tensor:
    total = torch.zeros(weights[0].shape[1], dtype=torch.float32, device=weights[0].device)
    for weight in weights:
        whole = weight.abs().max().float() if format.group_size == "tensor" else None
        for rows in chunks(weight):
            magnitude = grouped(weight[rows].float().abs(), format)
            largest = magnitude.amax(dim=2, keepdim=True) if whole is None else whole
            # Avoids 0 / 0 in groups of zeros.
            total += (magnitude / largest.clamp(min=torch.finfo(torch.float32).tiny)).sum(dim=0).reshape(-1)
    return total / sum(len(weight) for weight in weights)


def search_scale(
    weights: Sequence[Tensor],
    stats: LayerStats,
    formats: Sequence[Format],
    n_grid: int = 20,
    duo_scaling: bool = True,
) -> list[Scale]:
    """Return for each of ``formats`` (alike but for their bits) the candidate scale with the least loss over ``weights``.

    The loss is the output error over all calibration tokens, of each linear relative to its weight's size. No scaling is a
    candidate, so the result is never worse than rounding.
    """
    candidates = candidate_scales(weights, stats.mean_abs, formats[0], n_grid, duo_scaling)
    trials = [Trial(format) for format in formats]
    totals = race(weights, torch.stack([one.values for one in candidates]), stats.gram, trials, first_only=True)
    return [candidates[best] for best in totals.argmin(dim=1).tolist()]


def search_scales(
    weights: Sequence[Tensor],
    stats: LayerStats,
    formats: Sequence[Format],
    n_grid: int = 20,
    duo_scaling: bool = True,
) -> list[list[Scale]]:
    """Return for each of ``formats`` the best scales, up to ``CARRIED`` of them per stretch of the range.

    Clipping can reverse the order of two scales, so several go on to the clip search. The first is the best on the
    format's own grids; the best by autoawq's criterion, which uses its own symmetric grids, is among them. None is
    worse than no scaling.
    """
    candidates = candidate_scales(weights, stats.mean_abs, formats[0], n_grid, duo_scaling)
    trials = [Trial(format, stretch) for format in formats for stretch in stretches(format)]
    totals = race(weights, torch.stack([one.values for one in candidates]), stats.gram, trials)
    found = []
    for format in formats:
        own = [losses for trial, losses in zip(trials, totals, strict=True) if trial.format == format]
        best = [int(c) for losses in own for c in losses.argsort(stable=True)[:CARRIED] if losses[c].isfinite()]
        least = torch.stack(own).amin(dim=0)
        found.append([candidates[c] for c in dict.fromkeys(best) if least[c] <= own[0][0]])
    return found
