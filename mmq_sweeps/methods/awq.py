"""AWQ (arXiv 2306.00978): protect the columns with large activations by scaling them up before rounding.

Both searches minimise the layer's squared output error over all calibration tokens, a quadratic form in the Gram matrix
``G`` ``[I, I]`` of its inputs: ``sum_o e_o G e_o^T`` for the weight error ``e`` ``[O, I]``. No tokens are rerun.
Linears that share an input share the scale with the least sum of their errors, each relative to its weight's size. With
``fuse`` only scales are searched that the caller can fold into the layer before. Without, the scale is stored beside the
codes (``Q(W s) / s``), so it works for a linear anywhere in a model, but no format that others load holds it. Rows are
processed in chunks: nothing of the weight's size is allocated but its codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from mmq_sweeps.identity.roles import UNLESS_NULL
from mmq_sweeps.methods.base import LayerStats, Solution, check_vision_weight
from mmq_sweeps.methods.formats import (
    MAX_BITS,
    Format,
    Grid,
    QuantizedWeight,
    check_group_size,
    fit_grid,
    grid_over,
    round_to_grid,
)
from mmq_sweeps.methods.magnitude import divided, exponent_of, loss_weights
from mmq_sweeps.methods.products import product

# Weights per chunk: few enough for a processor's cache, but enough rows for a matrix product.
CHUNK, CHUNK_ROWS = 2**20, 256
# Columns of the Gram matrix per product; blocks above the diagonal are multiplied once and counted twice.
GRAM_BLOCK = 1024
# With fewer rows than this, every candidate is measured on all of them. With more, the WIDEST share of rows, by range,
# is measured first and the others in rounds (first row, step).
RACE_ROWS = 1024
WIDEST = 1 / 16
ROUNDS = ((0, 8), (4, 8), (2, 4), (1, 2))
# A candidate is dropped once it is behind the leader by this many standard errors.
MARGIN = 4.0
# Scales that enter the clip search; with ``RACE_ROWS`` rows or more, each CLIPPED_SHARE-th row decides among them.
CARRIED, CLIPPED_SHARE = 3, 8
# Weights of a group for each clip ratio whose grids are made at the same time.
GROUP_SHARE = 16
SMALLEST_INPUT_SCALE, LARGEST_INPUT_SCALE = 2.0**-14, 65504.0

Loss = Callable[[list[Tensor]], float]


def output_error(error: Tensor, gram: Tensor) -> Tensor:
    """Return the mean squared output error of each row ``[O]`` of the weight error ``[O, I]``, on inputs with ``gram``."""
    loss = torch.zeros(len(error), dtype=error.dtype, device=error.device)
    for start in range(0, error.shape[1], GRAM_BLOCK):
        stop = start + GRAM_BLOCK
        part = error[:, start:stop]
        found = product(part, gram[start:stop, start:stop])
        if start:
            # G is symmetric, so half of the product is skipped and the other doubled.
            found.add_(product(error[:, :start], gram[:start, start:stop]), alpha=2)
        loss += found.mul_(part).sum(dim=1)
    return loss


@dataclass(frozen=True)
class Trial:
    """A format to try, and the factor that stretches each group's range before its grid is fitted."""

    format: Format
    stretch: float = 1.0


def _stretches(format: Format) -> tuple[float, ...]:
    """Return the range factors to try: 1 and, for symmetric formats, that of autoawq's grid.

    A symmetric range ends half a step beyond its last code; autoawq's factor gives the largest weight a code.
    """
    return (1.0, format.max_code / (format.max_code - 1)) if format.symmetric else (1.0,)


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
        for rows in _chunks(weight):
            magnitude = _grouped(weight[rows].float().abs(), format)
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
    loss: Loss | None = None,
) -> list[Scale]:
    """Return for each of ``formats`` (alike but for their bits) the candidate scale with the least loss over ``weights``.

    The loss is the output error over all calibration tokens, of each linear relative to its weight's size, or ``loss``
    of the dequantized weights: for instance the output error of a whole attention module, which no Gram matrix
    captures. No scaling is a candidate, so the result is never worse than rounding.
    """
    candidates = candidate_scales(weights, stats.mean_abs, formats[0], n_grid, duo_scaling)
    if loss is None:
        trials = [Trial(format) for format in formats]
        totals = _race(weights, torch.stack([one.values for one in candidates]), stats.gram, trials)
    else:
        tried = [[loss(_restored(weights, one.values, format)) for one in candidates] for format in formats]
        totals = torch.tensor(tried, dtype=torch.float64)
    return [candidates[best] for best in totals.argmin(dim=1).tolist()]


def search_scales(
    weights: Sequence[Tensor],
    stats: LayerStats,
    formats: Sequence[Format],
    n_grid: int = 20,
    duo_scaling: bool = True,
    carried: int = CARRIED,
) -> list[list[Scale]]:
    """Return for each of ``formats`` the best scales, up to ``carried`` of them per stretch of the range.

    Clipping can reverse the order of two scales, so several go on to the clip search. The first is the best on the
    format's own grids; the best by autoawq's criterion, which uses its own symmetric grids, is among them. None is
    worse than no scaling.
    """
    candidates = candidate_scales(weights, stats.mean_abs, formats[0], n_grid, duo_scaling)
    trials = [Trial(format, stretch) for format in formats for stretch in _stretches(format)]
    totals = _race(weights, torch.stack([one.values for one in candidates]), stats.gram, trials)
    found = []
    for format in formats:
        own = [losses for trial, losses in zip(trials, totals, strict=True) if trial.format == format]
        best = [int(c) for losses in own for c in losses.argsort(stable=True)[:carried] if losses[c].isfinite()]
        least = torch.stack(own).amin(dim=0)
        found.append([candidates[c] for c in dict.fromkeys(best) if least[c] <= own[0][0]])
    return found


def _restored(weights: Sequence[Tensor], scale: Tensor, format: Format) -> list[Tensor]:
    restored = []
    for weight in weights:
        scaled = weight.float() * scale
        restored.append(weight + _rounding_error(scaled, fit_grid(scaled, format)) / scale)
    return restored


def _race(weights: Sequence[Tensor], scales: Tensor, gram: Tensor, trials: Sequence[Trial]) -> Tensor:
    """Return the loss ``[F, C]`` of each of ``scales`` ``[C, I]`` in each trial; infinite if it was dropped.

    A candidate clearly behind the leader on the rows so far is dropped (racing: Maron and Moore, 1994); the others are
    measured on all rows, so the losses finally compared are exact.
    """
    alive = torch.ones(len(trials), len(scales), dtype=torch.bool)
    measured = torch.zeros(len(trials), len(scales), 0, dtype=torch.float64)
    certain, population = 0, sum(len(weight) for weight in weights)
    factors = loss_weights(weights)
    for rows_by_weight in _rounds(weights):
        for weight, factor, rows in zip(weights, factors, rows_by_weight, strict=True):
            for chunk in rows.split(max(CHUNK_ROWS, CHUNK // weight.shape[1])):
                losses = _losses(weight, chunk, scales, gram, trials, alive)
                measured = torch.cat([measured, losses * factor], dim=2)
        certain = certain or measured.shape[2]
        for index, of_format in enumerate(measured):
            alive[index] &= _not_clearly_behind(of_format, certain, population)
    return measured.sum(dim=2)


def _rounds(weights: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the rows of each weight by round: first those with the widest range, which may carry most of the loss."""
    orders = [torch.argsort(weight.amax(dim=1) - weight.amin(dim=1), descending=True) for weight in weights]
    if min(len(order) for order in orders) < RACE_ROWS:
        yield orders
        return
    yield [order[: int(WIDEST * len(order))] for order in orders]
    for first, step in ROUNDS:
        yield [order[int(WIDEST * len(order)) :][first::step] for order in orders]


def _not_clearly_behind(losses: Tensor, certain: int, population: int) -> Tensor:
    """Return a mask ``[C]`` of candidates that may be the best on all rows, from ``losses`` ``[C, n]`` on ``n`` of them.

    The first ``certain`` rows represent only themselves; the following are a sample of all others in the
    ``population``.
    """
    count, others = losses.shape[1] - certain, population - certain
    if count < 2:
        return torch.isfinite(losses).all(dim=1)
    behind = losses - losses[losses.sum(dim=1).argmin()]
    sampled = behind[:, certain:]
    total = behind[:, :certain].sum(dim=1) + others * sampled.mean(dim=1)
    return total <= MARGIN * others * sampled.std(dim=1) * ((1 - count / others) / count) ** 0.5


def _losses(
    weight: Tensor, rows: Tensor, scales: Tensor, gram: Tensor, trials: Sequence[Trial], alive: Tensor
) -> Tensor:
    """Return the loss ``[F, C, n]`` of each of ``rows`` if ``alive`` ``[F, C]``, otherwise infinite; on the CPU."""
    losses = torch.full((*alive.shape, len(rows)), torch.inf, dtype=torch.float64)
    part = weight[rows].float()
    # Batches never change: the last bits of a product may depend on its number of rows, and a format's result must
    # not depend on the other formats.
    for batch in torch.arange(len(scales)).split(max(1, CHUNK // part.numel())):
        if not alive[:, batch].any():
            continue
        tried = scales[batch.to(scales.device), None]
        scaled = (part * tried).reshape(-1, part.shape[1])
        low, high = _ranges(scaled, trials[0].format)
        if trials[0].format.group_size == "tensor":
            low, high = (bound.repeat_interleave(len(rows))[:, None] for bound in _tensor_ranges(weight, tried[:, 0]))
        for index, trial in enumerate(trials):
            if alive[index, batch].any():
                error = _rounding_error(scaled, grid_over(low * trial.stretch, high * trial.stretch, trial.format))
                error.reshape(len(batch), *part.shape).div_(tried)
                losses[index, batch] = output_error(error, gram).reshape(len(batch), -1).double().cpu()
    return losses.where(alive[:, :, None], torch.inf)


def quantize_clipped(
    weight: Tensor, scale: Tensor, gram: Tensor, format: Format, fractions: Sequence[float]
) -> tuple[QuantizedWeight, Tensor]:
    """Quantize ``weight * scale`` on clipped grids; also return each row's loss ``[O]``.

    ``fractions`` are the clip ratios to try; the first is 1 (no clipping), which wins ties. Each group takes the ratio
    with the least error on its own columns, as in the paper's code. Errors of different groups interact and may add up
    to a loss for the row, so each row takes the best, on the whole Gram matrix, of: the best ratios among all grids,
    the best among autoawq's, and no clipping.
    """
    if format.group_size == "tensor":
        return _quantize_whole(weight, scale, gram, format, fractions)
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    group_losses = _group_losses(scale, gram, format)
    grids, losses = [], []
    for rows in _chunks(weight):
        scaled = weight[rows].float() * scale
        low, high = _ranges(scaled, format)

        def row_losses(grid: Grid, some: Tensor | None = None, scaled: Tensor = scaled) -> Tensor:
            return output_error(_rounding_error(scaled if some is None else scaled[some], grid).div_(scale), gram)

        kept = grid_over(low, high, format)
        least = row_losses(kept)
        for grid in _best_cuts(scaled, low, high, format, fractions, group_losses) if len(fractions) > 1 else ():
            different = ((grid.scale != kept.scale) | (grid.zero != kept.zero)).any(dim=1).nonzero()[:, 0]
            if not len(different):
                continue
            loss = least.index_copy(0, different, row_losses(_rows_of(grid, different), different))
            kept, least = _where((loss < least)[:, None], grid, kept), torch.minimum(loss, least)
        codes[rows] = round_to_grid(scaled, kept)
        grids.append(kept)
        losses.append(least)
    whole = Grid(torch.cat([grid.scale for grid in grids]), torch.cat([grid.zero for grid in grids]), format)
    return QuantizedWeight(codes, whole, scale.to(torch.float16)), torch.cat(losses)


def _best_cuts(
    scaled: Tensor,
    low: Tensor,
    high: Tensor,
    format: Format,
    fractions: Sequence[float],
    group_losses: Callable[[Tensor], Tensor],
) -> list[Grid]:
    """Return the best grids group by group, among all tried and among autoawq's; if symmetric, also autoawq's unclipped."""
    all_cuts: tuple[Grid, Tensor] | None = None
    its_cuts: tuple[Grid, Tensor] | None = None
    uncut = None
    for grid, its in _cut_grids(low, high, format, fractions):
        loss = group_losses(_rounding_error(scaled, grid))
        all_cuts = _better(all_cuts, grid, loss)
        if its:
            its_cuts = _better(its_cuts, grid, loss)
            uncut = uncut or grid
    assert all_cuts is not None
    assert its_cuts is not None
    assert uncut is not None
    return [all_cuts[0], its_cuts[0], *([uncut] if format.symmetric else [])]


def _better(best: tuple[Grid, Tensor] | None, grid: Grid, loss: Tensor) -> tuple[Grid, Tensor]:
    if best is None:
        return grid, loss
    kept, least = best
    return _where(loss < least, grid, kept), torch.minimum(loss, least)


def _cut_grids(low: Tensor, high: Tensor, format: Format, fractions: Sequence[float]) -> Iterator[tuple[Grid, bool]]:
    """Yield grids clipped to each of ``fractions`` of the largest magnitude, and whether autoawq has them too.

    In a skewed group, only the longer end is clipped at first.
    """
    largest = torch.maximum(-low, high)
    # Several fractions at a time, because a call of torch costs more than its work on a few scales. With small groups,
    # only as many as take little memory beside the weights.
    size = format.group_size
    count = max(1, size // GROUP_SHARE) if isinstance(size, int) else len(fractions)
    for start in range(0, len(fractions), count):
        yield from _cut_together(low, high, largest, format, fractions[start : start + count])


def _cut_together(
    low: Tensor, high: Tensor, largest: Tensor, format: Format, fractions: Sequence[float]
) -> Iterator[tuple[Grid, bool]]:
    bound = torch.cat([largest * fraction for fraction in fractions])
    if format.symmetric:
        own, stretched = (grid_over(-bound * by, bound * by, format) for by in _stretches(format))
        for one, other in zip(_split(own, len(fractions)), _split(stretched, len(fractions)), strict=True):
            yield one, False
            yield other, True
        return
    start, end = (torch.cat([value] * len(fractions)) for value in (low, high))
    start, end = torch.maximum(start, -bound), torch.minimum(end, bound)
    grids = grid_over(start, end, format)
    # The real zero lies between two codes, halfway if both ends are clipped: try the other code too.
    zero = grids.zero + torch.sign(-start.clamp(max=0) / grids.scale - grids.zero)
    others = Grid(grids.scale, zero.clamp_(0, format.max_code), format)
    for one, other in zip(_split(grids, len(fractions)), _split(others, len(fractions)), strict=True):
        yield one, True
        yield other, False


def _split(grid: Grid, count: int) -> list[Grid]:
    """Split a grid of ``count`` weights below each other."""
    pairs = zip(grid.scale.chunk(count), grid.zero.chunk(count), strict=True)
    return [Grid(scale, zero, grid.format) for scale, zero in pairs]


def _rows_of(grid: Grid, rows: Tensor) -> Grid:
    return Grid(grid.scale[rows], grid.zero[rows], grid.format)


def best_clipped(
    weights: Sequence[Tensor], scales: Sequence[Scale], gram: Tensor, format: Format, fractions: Sequence[float]
) -> tuple[Scale, list[QuantizedWeight]]:
    """Return the scale with the least loss after ``quantize_clipped``, and the weights quantized with it.

    With many rows every eighth decides: ``scales`` are close to each other, and losses of rows are alike.
    """

    factors = loss_weights(weights)

    def clipped(scale: Scale, some: Sequence[Tensor]) -> tuple[list[QuantizedWeight], float]:
        found = [quantize_clipped(weight, scale.values, gram, format, fractions) for weight in some]
        loss = sum(float(losses.double().sum()) * factor for (_, losses), factor in zip(found, factors, strict=True))
        return [quantized for quantized, _ in found], loss

    if len(scales) > 1 and sum(map(len, weights)) >= RACE_ROWS and format.group_size != "tensor":
        some = [weight[::CLIPPED_SHARE] for weight in weights]
        scales = [min(scales, key=lambda scale: clipped(scale, some)[1])]
    best, (solved, least) = scales[0], clipped(scales[0], weights)
    for scale in scales[1:]:
        quantized, loss = clipped(scale, weights)
        if loss < least:
            best, solved, least = scale, quantized, loss
    return best, solved


def _group_losses(scale: Tensor, gram: Tensor, format: Format) -> Callable[[Tensor], Tensor]:
    """Return a function from a scaled error ``[O, I]`` to the mean squared output error ``[O, G]`` of each group.

    A group's error counts only its own columns.
    """
    count = _group_count(len(gram), format)
    if count == 1:
        return lambda error: output_error(error / scale, gram)[:, None]
    size = len(gram) // count
    blocks = torch.stack([gram[i : i + size, i : i + size] for i in range(0, len(gram), size)])
    blocks.div_(scale.reshape(count, size, 1)).div_(scale.reshape(count, 1, size))

    def of_groups(error: Tensor) -> Tensor:
        parts = error.reshape(len(error), count, size).transpose(0, 1)
        return torch.bmm(parts, blocks).mul_(parts).sum(dim=2).T

    return of_groups


def _where(first: Tensor, one: Grid, other: Grid) -> Grid:
    """Select groups of ``one`` if ``first`` (``[O, G]`` or ``[O, 1]``), otherwise those of ``other``."""
    return Grid(torch.where(first, one.scale, other.scale), torch.where(first, one.zero, other.zero), one.format)


def _quantize_whole(
    weight: Tensor, scale: Tensor, gram: Tensor, format: Format, fractions: Sequence[float]
) -> tuple[QuantizedWeight, Tensor]:
    low, high = (bound[:, None] for bound in _tensor_ranges(weight, scale[None]))
    # Without clipping, try only the format's own grid.
    grids = [grid for grid, _ in _cut_grids(low, high, format, fractions)][: None if len(fractions) > 1 else 1]
    losses = torch.empty(len(grids), len(weight), dtype=torch.float64)
    for rows in _chunks(weight):
        scaled = weight[rows].float() * scale
        for index, grid in enumerate(grids):
            losses[index, rows] = output_error(_rounding_error(scaled, grid).div_(scale), gram).double().cpu()
    index = int(losses.sum(dim=1).argmin())
    best = grids[index]
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    for rows in _chunks(weight):
        codes[rows] = round_to_grid(weight[rows].float() * scale, best)
    return QuantizedWeight(codes, best, scale.to(torch.float16)), losses[index]


def _rounding_error(scaled: Tensor, grid: Grid) -> Tensor:
    """Return the error that rounding ``scaled`` ``[O, I]`` to ``grid`` adds to it."""
    scale, zero = grid.scale[:, :, None], grid.zero[:, :, None]
    grouped = scaled.reshape(*grid.scale.shape, -1)
    error = (grouped / scale).add_(zero).round_().clamp_(0, grid.format.max_code).sub_(zero).mul_(scale).sub_(grouped)
    return error.reshape(scaled.shape)


def _ranges(scaled: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """Return the least and the largest weight of each group, both ``[O, G]``."""
    grouped = _grouped(scaled, format)
    return grouped.amin(dim=2), grouped.amax(dim=2)


def _tensor_ranges(weight: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the largest of all weights for each of ``scales`` ``[C, I]``, both ``[C]``."""
    # Scales are positive, so a column's largest scaled weight is its scale times its largest weight.
    low, high = weight.amin(dim=0).float(), weight.amax(dim=0).float()
    return (low * scales).amin(dim=1), (high * scales).amax(dim=1)


def _grouped(rows: Tensor, format: Format) -> Tensor:
    """Reshape ``rows`` ``[O, I]`` to ``[O, G, I/G]``."""
    return rows.reshape(len(rows), _group_count(rows.shape[1], format), -1)


def _group_count(columns: int, format: Format) -> int:
    return format.groups((1, columns))[1]


def _chunks(weight: Tensor) -> Iterator[slice]:
    """Yield slices of rows to process at a time."""
    step = max(CHUNK_ROWS, CHUNK // weight.shape[1])
    for start in range(0, len(weight), step):
        yield slice(start, min(start + step, len(weight)))


@dataclass(frozen=True)
class AWQ:
    """Scale search over ``n_grid`` exponents, then a clip search over ``clip_steps`` ranges (0: no clipping).

    Ranges are clipped by less than the share ``max_shrink``. With ``fuse``, weights whose input scale cannot be folded into
    the layer before (``LayerStats.foldable``) get none, and the caller folds those of the others. ``vision_weight`` is the
    share of vision tokens in the statistics that the caller gives.
    """

    group_size: int | str = "channel"
    symmetric: bool = False
    n_grid: int = 20
    duo_scaling: bool = True
    clip_steps: int = 10
    max_shrink: float = 0.5
    fuse: bool = False  # Off for a caller that folds nothing; conf/method/awq.yaml turns it on.
    vision_weight: float | None = field(default=None, metadata=UNLESS_NULL)

    known_as: ClassVar[str] = "awq"
    needs_statistics: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_group_size(self.group_size)
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

    def format(self, bits: int) -> Format:
        return Format(bits, self.group_size, self.symmetric)

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
