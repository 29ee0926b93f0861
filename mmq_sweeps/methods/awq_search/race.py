"""Losses of candidate scales, measured on no more rows than it takes to tell which is the best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmq_sweeps.methods.awq_search.errors import CHUNK, OutputError, ranges, rounding_error, tensor_ranges
from mmq_sweeps.methods.formats import Format, grid_over
from mmq_sweeps.methods.magnitude import loss_weights

# Rows per product: with fewer, reading a wide Gram matrix takes longer than multiplying.
PRODUCT_ROWS = 512
# A candidate is dropped once it is behind the leader by this many standard errors.
MARGIN = 4.0
# A sample has at least this many rows.
SAMPLE = 64


@dataclass(frozen=True)
class Schedule:
    """The rows on which candidates are measured before some are dropped.

    With fewer than ``least_rows`` rows in a weight all are measured at once. Otherwise the ``widest`` share of rows, by
    range, comes first, since it may carry most of the loss, then every n-th of the others, with ``n`` a power of two up to
    ``step``; from round to round that sample doubles.
    """

    least_rows: int
    widest: float
    step: int


# For the best few, and for the first only. The second is quick where each row has a grid of its own; on a grid of the whole
# matrix few rows may decide, and a small sample may have none of them.
BEST_FEW, FIRST_ONLY = Schedule(1024, 1 / 16, 8), Schedule(512, 1 / 32, 2**20)


@dataclass(frozen=True)
class Trial:
    """A format to try, and the factor that stretches each group's range before its grid is fitted."""

    format: Format
    stretch: float = 1.0


def stretches(format: Format) -> tuple[float, ...]:
    """Return the range factors to try: 1 and, for symmetric formats, that of autoawq's grid.

    A symmetric range ends half a step beyond its last code; autoawq's factor gives the largest weight a code.
    """
    return (1.0, format.max_code / (format.max_code - 1)) if format.symmetric else (1.0,)


def race(
    weights: Sequence[Tensor], scales: Tensor, gram: Tensor, trials: Sequence[Trial], first_only: bool = False
) -> Tensor:
    """Return the loss ``[F, C]`` of each of ``scales`` ``[C, I]`` in each trial; infinite if it was dropped.

    A candidate clearly behind the leader on the rows so far is dropped (racing: Maron and Moore, 1994); the others are
    measured on all rows, so the losses finally compared are exact. With ``first_only`` the last candidate left in a trial is
    measured no further, and its loss is that of some rows.
    """
    alive = torch.ones(len(trials), len(scales), dtype=torch.bool)
    measured = torch.zeros(len(trials), len(scales), 0, dtype=torch.float64)
    certain, population = 0, sum(len(weight) for weight in weights)
    factors, output_error = loss_weights(weights), OutputError(gram)
    schedule = FIRST_ONLY if first_only and trials[0].format.group_size != "tensor" else BEST_FEW
    fewest = 1 if first_only else 0
    for rows_by_weight in _rounds(weights, schedule):
        entered, undecided = alive.clone(), alive.sum(dim=1, keepdim=True) > fewest
        if not undecided.any():
            break
        for weight, factor, rows in zip(weights, factors, rows_by_weight, strict=True):
            for chunk in rows.split(max(PRODUCT_ROWS, CHUNK // weight.shape[1])):
                losses = _losses(weight, chunk, scales, output_error, trials, alive & undecided)
                measured = torch.cat([measured, losses * factor], dim=2)
        certain = certain or measured.shape[2]
        for index in undecided.nonzero()[:, 0].tolist():
            own = alive[index].clone()
            alive[index, own] = _not_clearly_behind(measured[index, own], certain, population)
    total = measured.sum(dim=2)
    return total.where(entered & total.isfinite(), torch.inf)


def _rounds(weights: Sequence[Tensor], schedule: Schedule) -> Iterator[list[Tensor]]:
    """Yield the rows of each weight by round."""
    orders = [torch.argsort(weight.amax(dim=1) - weight.amin(dim=1), descending=True) for weight in weights]
    if min(len(order) for order in orders) < schedule.least_rows:
        yield orders
        return
    widest = [int(schedule.widest * len(order)) for order in orders]
    yield [order[:count] for order, count in zip(orders, widest, strict=True)]
    others = [order[count:] for order, count in zip(orders, widest, strict=True)]
    step = min(schedule.step, 2 ** max(0, int(math.log2(sum(map(len, others)) / SAMPLE))))
    yield [order[::step] for order in others]
    while step > 1:
        yield [order[step // 2 :: step] for order in others]
        step //= 2


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
    weight: Tensor,
    rows: Tensor,
    scales: Tensor,
    output_error: OutputError,
    trials: Sequence[Trial],
    wanted: Tensor,
) -> Tensor:
    """Return the loss ``[F, C, n]`` of each of ``rows`` if ``wanted`` ``[F, C]``, otherwise 0; on the CPU."""
    losses = torch.zeros(*wanted.shape, len(rows), dtype=torch.float64)
    part = weight[rows].float()
    # The last bits of a product may depend on its number of rows, and a format's result must not depend on the other
    # formats: batches never change, and a product has those candidates of a batch that the format itself wants.
    at_once = max(1, max(CHUNK, PRODUCT_ROWS * part.shape[1]) // max(1, part.numel()))
    memory = part.new_empty(2, min(at_once, len(scales)), *part.shape)
    for batch in torch.arange(len(scales)).split(at_once):
        tried = batch[wanted[:, batch].any(dim=0)]
        if not len(tried):
            continue
        by = scales[tried.to(scales.device), None]
        scaled = torch.mul(part, by, out=memory[0, : len(tried)])
        bounds = _bounds(weight, scaled, by, trials[0].format)
        for index, trial in enumerate(trials):
            own = wanted[index, tried]
            if own.any():
                error = _error(scaled, bounds, by, own.to(part.device), trial, memory[1])
                found = output_error(error.flatten(0, 1)).double().cpu()
                losses[index, tried[own]] = found.reshape(len(error), -1)
    return losses


def _bounds(weight: Tensor, scaled: Tensor, scales: Tensor, format: Format) -> tuple[Tensor, Tensor]:
    """Return the least and the largest of each group of ``scaled`` ``[C, n, I]``, rows of ``weight`` by ``scales``."""
    count, rows, _ = scaled.shape
    if format.group_size != "tensor":
        low, high = ranges(scaled.flatten(0, 1), format)
        return low.unflatten(0, (count, rows)), high.unflatten(0, (count, rows))
    low, high = tensor_ranges(weight, scales[:, 0])
    return low[:, None, None].expand(-1, rows, -1), high[:, None, None].expand(-1, rows, -1)


def _error(
    scaled: Tensor, bounds: tuple[Tensor, Tensor], scales: Tensor, own: Tensor, trial: Trial, memory: Tensor
) -> Tensor:
    """Return the weight error ``[c, n, I]`` of the candidates ``own`` (a mask) of ``scaled``, in ``memory``."""
    chosen = scaled if own.all() else scaled[own]
    low, high = (bound[own].flatten(0, 1) * trial.stretch for bound in bounds)
    rounding_error(chosen.flatten(0, 1), grid_over(low, high, trial.format), out=memory[: len(chosen)].flatten(0, 1))
    return memory[: len(chosen)].div_(scales[own])
