"""Quantization of scaled weights on clipped ranges, group by group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter

import torch
from torch import Tensor

from mmq_sweeps.methods.awq_search.errors import (
    OutputError,
    chunks,
    group_count,
    ranges,
    rounding_error,
    tensor_ranges,
)
from mmq_sweeps.methods.awq_search.race import stretches
from mmq_sweeps.methods.awq_search.scales import Scale
from mmq_sweeps.methods.formats import Format, Grid, QuantizedWeight, grid_over, round_to_grid
from mmq_sweeps.methods.magnitude import loss_weights

# With as many rows as this, each CLIPPED_SHARE-th decides among scales.
DECIDING_ROWS, CLIPPED_SHARE = 1024, 8
# Weights of a group for each clip ratio whose grids are made at the same time.
GROUP_SHARE = 16


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
    output_error = OutputError(gram)
    group_losses = _group_losses(scale, gram, format, output_error)
    grids, losses = [], []
    for rows in chunks(weight):
        scaled = weight[rows].float() * scale
        low, high = ranges(scaled, format)

        def row_losses(grid: Grid, some: Tensor | None = None, scaled: Tensor = scaled) -> Tensor:
            return output_error(rounding_error(scaled if some is None else scaled[some], grid).div_(scale))

        kept = grid_over(low, high, format)
        least = row_losses(kept)
        for grid in _best_cuts(scaled, low, high, format, fractions, group_losses) if len(fractions) > 1 else ():
            different = ((grid.scale != kept.scale) | (grid.zero != kept.zero)).any(dim=1).nonzero()[:, 0]
            if not len(different):
                continue
            loss = least.index_copy(0, different, row_losses(_combined(itemgetter(different), grid), different))
            kept, least = _where((loss < least)[:, None], grid, kept), torch.minimum(loss, least)
        codes[rows] = round_to_grid(scaled, kept)
        grids.append(kept)
        losses.append(least)
    return QuantizedWeight(codes, _stacked(grids), scale.to(torch.float16)), torch.cat(losses)


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
        loss = group_losses(rounding_error(scaled, grid))
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
        own, stretched = (grid_over(-bound * by, bound * by, format) for by in stretches(format))
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


def best_clipped(
    weights: Sequence[Tensor], scales: Sequence[Scale], gram: Tensor, format: Format, fractions: Sequence[float]
) -> tuple[Scale, list[QuantizedWeight]]:
    """Return the scale with the least loss after ``quantize_clipped``, and the weights quantized with it.

    With many rows every eighth decides: ``scales`` are close to each other, and losses of rows are alike.
    """
    if len(scales) == len(fractions) == 1:
        return scales[0], [_rounded(weight, scales[0].values, format, None) for weight in weights]
    factors = loss_weights(weights)

    def clipped(scale: Scale, some: Sequence[Tensor]) -> tuple[list[QuantizedWeight], float]:
        found = [quantize_clipped(weight, scale.values, gram, format, fractions) for weight in some]
        loss = sum(float(losses.double().sum()) * factor for (_, losses), factor in zip(found, factors, strict=True))
        return [quantized for quantized, _ in found], loss

    if len(scales) > 1 and sum(map(len, weights)) >= DECIDING_ROWS and format.group_size != "tensor":
        some = [weight[::CLIPPED_SHARE] for weight in weights]
        scales = [min(scales, key=lambda scale: clipped(scale, some)[1])]
    best, (solved, least) = scales[0], clipped(scales[0], weights)
    for scale in scales[1:]:
        quantized, loss = clipped(scale, weights)
        if loss < least:
            best, solved, least = scale, quantized, loss
    return best, solved


def _rounded(weight: Tensor, scale: Tensor, format: Format, grid: Grid | None) -> QuantizedWeight:
    """Quantize ``weight * scale`` on ``grid``, or on unclipped grids if it is None, without measuring losses."""
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    grids = []
    if grid is None and format.group_size == "tensor":
        grid = grid_over(*_whole_range(weight, scale), format)
    for rows in chunks(weight):
        scaled = weight[rows].float() * scale
        grids.append(grid or grid_over(*ranges(scaled, format), format))
        codes[rows] = round_to_grid(scaled, grids[-1])
    return QuantizedWeight(codes, grid or _stacked(grids), scale.to(torch.float16))


def _whole_range(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    low, high = tensor_ranges(weight, scale[None])
    return low[:, None], high[:, None]


def _combined(change: Callable[..., Tensor], *grids: Grid) -> Grid:
    """Return ``change`` of the scales and of the zeros of ``grids`` as a grid."""
    scale, zero = (change(*(getattr(grid, name) for grid in grids)) for name in ("scale", "zero"))
    return Grid(scale, zero, grids[0].format)


def _stacked(grids: Sequence[Grid]) -> Grid:
    return _combined(lambda *parts: torch.cat(parts), *grids)


def _group_losses(scale: Tensor, gram: Tensor, format: Format, output_error: OutputError) -> Callable[[Tensor], Tensor]:
    """Return a function from a scaled error ``[O, I]`` to the mean squared output error ``[O, G]`` of each group.

    A group's error counts only its own columns.
    """
    count = group_count(len(gram), format)
    if count == 1:
        return lambda error: output_error(error / scale)[:, None]
    size = len(gram) // count
    blocks = torch.stack([gram[i : i + size, i : i + size] for i in range(0, len(gram), size)])
    blocks.div_(scale.reshape(count, size, 1)).div_(scale.reshape(count, 1, size))

    def of_groups(error: Tensor) -> Tensor:
        parts = error.reshape(len(error), count, size).transpose(0, 1)
        return torch.bmm(parts, blocks).mul_(parts).sum(dim=2).T

    return of_groups


def _where(first: Tensor, one: Grid, other: Grid) -> Grid:
    """Select groups of ``one`` if ``first`` (``[O, G]`` or ``[O, 1]``), otherwise those of ``other``."""
    return _combined(lambda own, others: torch.where(first, own, others), one, other)


def _quantize_whole(
    weight: Tensor, scale: Tensor, gram: Tensor, format: Format, fractions: Sequence[float]
) -> tuple[QuantizedWeight, Tensor]:
    low, high = _whole_range(weight, scale)
    # Without clipping, try only the format's own grid.
    grids = [grid for grid, _ in _cut_grids(low, high, format, fractions)][: None if len(fractions) > 1 else 1]
    losses, output_error = torch.empty(len(grids), len(weight), dtype=torch.float64), OutputError(gram)
    for rows in chunks(weight):
        scaled = weight[rows].float() * scale
        for index, grid in enumerate(grids):
            losses[index, rows] = output_error(rounding_error(scaled, grid).div_(scale)).double().cpu()
    index = int(losses.sum(dim=1).argmin())
    return _rounded(weight, scale, format, grids[index]), losses[index]
