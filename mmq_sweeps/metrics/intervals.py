"""Bootstrap intervals over items, and the paired difference of two cells.

Items are drawn with replacement 1,000 times from a fixed seed; metrics with equally many items share the draws. Items that
share a group, such as the questions about one picture, are drawn together: a draw has as many groups as there are, and its
figure is that of the items in them, however many. The interval is the 2.5th to 97.5th percentile of the metric's figure on the
draws. Only the items vary: document frequencies and everything else derived from the references stay those of the whole task.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmq_sweeps.metrics.base import Count, Floats, Metric, Scores
from mmq_sweeps.metrics.degenerate import of_count
from mmq_sweeps.metrics.names import load_metric
from mmq_sweeps.metrics.result import MetricResult

RESAMPLES = 1000
SEED = 20260
_PERCENTILES = (2.5, 97.5)
# The number of each item's group ``[N]``; None if every item is drawn by itself.
Owners = NDArray[np.intp] | None
_BLOCK = 6_000_000  # counts in memory at a time; up to this size, all 1,000 draws are cached


@dataclass(frozen=True)
class PairedDifference:
    """Figure of the second result minus that of the first (``value``) on the same items, with its 95% interval."""

    name: str
    value: float
    interval: tuple[float, float]

    @property
    def significant(self) -> bool:
        """True if the interval excludes zero."""
        low, high = self.interval
        return low > 0 or high < 0


def result_of(
    metric: Metric, items: tuple[str, ...], scores: Scores, groups: Mapping[str, str] | None = None
) -> MetricResult:
    """Return the result of ``scores`` over ``items``, with its interval; items of one group are drawn together."""
    groups = groups or {}
    owners = owners_of(items, groups)
    draws = _drawn(metric, scores.totals, owners) if items else np.full(1, np.nan)
    return MetricResult(
        name=metric.name,
        value=scores.value,
        per_item=dict(zip(items, scores.per_item.tolist(), strict=True)),
        interval=interval_of(draws),
        higher_is_better=metric.higher_is_better,
        totals=None if scores.totals.shape[1] == 1 else scores.totals,
        definition=getattr(metric, "definition", ""),
        warnings=(*scores.warnings, *of_count(len(items))),
        groups={item: groups[item] for item in items if groups.get(item, item) != item} if owners is not None else {},
    )


def owners_of(items: Sequence[str], groups: Mapping[str, str]) -> Owners:
    """Return the number of each item's group, by first appearance; None if no two items share one.

    An item that ``groups`` does not name has its own id for a group.
    """
    if not groups:
        return None
    places: dict[str, int] = {}
    found = np.array([places.setdefault(groups.get(item, item), len(places)) for item in items], dtype=np.intp)
    return found if len(places) < len(items) else None


def paired_difference(a: MetricResult, b: MetricResult) -> PairedDifference:
    """Return how much higher ``b`` is than ``a``, drawing the same items for both, so that shared effects cancel.

    Raises ValueError if metrics or items differ, or if a figure that is not the mean of its items lacks its ``totals``.
    """
    (found,) = paired_differences(a, [b])
    if isinstance(found, ValueError):
        raise found
    return found


def paired_differences(a: MetricResult, several: Sequence[MetricResult]) -> list[PairedDifference | ValueError]:
    """Return the ``paired_difference`` of each of ``several`` from ``a``, or the error that says why there is none.

    All are drawn at once, some of them at a time so that memory stays bounded: a draw then costs little more than one.
    """
    refused = [_unlike(a, b) for b in several]
    left = [b for b, error in zip(several, refused, strict=True) if error is None]
    found = iter(_drawn_differences(a, left))
    return [next(found) if error is None else error for error in refused]


def _unlike(a: MetricResult, b: MetricResult) -> ValueError | None:
    """Return why two results cannot be compared; None if they can."""
    if a.name != b.name:
        return ValueError(f"Cannot compare {a.name} with {b.name}")
    if a.per_item.keys() != b.per_item.keys():
        odd = sorted(a.per_item.keys() ^ b.per_item.keys())
        return ValueError(f"{a.name}: the results are over different items, for example {odd[0]!r}")
    if not a.per_item:
        return ValueError(f"{a.name}: there are no items to compare")
    for result in (a, b):
        if result.totals is None:
            mean = np.fromiter(result.per_item.values(), np.float64, len(result.per_item)).mean()
            if not np.isclose(mean, result.value, rtol=1e-9, atol=1e-12, equal_nan=True):
                return ValueError(f"{a.name} is not the mean of its items: keep the result's totals to compare it")
    return None


def _drawn_differences(a: MetricResult, several: Sequence[MetricResult]) -> Iterator[PairedDifference]:
    """Yield the differences of results that can be compared."""
    items = tuple(a.per_item)
    owners = _owners([a, *several], items)
    size = 1 if a.totals is None else a.totals.shape[1]
    at_once = max(1, _BLOCK // (max(len(items), RESAMPLES) * size))
    for start in range(0, len(several), at_once):
        block = several[start : start + at_once]
        widths = {None if one.totals is None else one.totals.shape[1] for one in (a, *block)}
        if widths == {None}:
            figures = _mean_differences(a, block, items, owners)
        elif len(widths) == 1:
            figures = _figures([*block, a], items, owners)
            figures = figures[:-1] - figures[-1]
        else:
            figures = np.concatenate([_figures([b], items, owners) - _figures([a], items, owners) for b in block])
        low, high = np.percentile(figures, _PERCENTILES, axis=1)
        for place, b in enumerate(block):
            yield PairedDifference(a.name, b.value - a.value, (float(low[place]), float(high[place])))


def paired_share(a: MetricResult, b: MetricResult) -> tuple[float, tuple[float, float]]:
    """Return the figure of ``b`` as a share of that of ``a``, whose figure must not be zero, and its 95% interval.

    Items are drawn as in ``paired_difference``. Draws in which ``a`` has nothing are left out.
    """
    if (error := _unlike(a, b)) is not None:
        raise error
    items = tuple(a.per_item)
    whole, part = (_figures([result], items, _owners([a, b], items))[0] for result in (a, b))
    return b.value / a.value, interval_of(part[whole != 0] / whole[whole != 0])


def _owners(results: Sequence[MetricResult], items: tuple[str, ...]) -> Owners:
    """Return the groups that are drawn together; records from before groups were kept go by those of the others."""
    return owners_of(items, next((result.groups for result in results if result.groups), {}))


def _mean_differences(
    a: MetricResult, several: Sequence[MetricResult], items: tuple[str, ...], owners: Owners
) -> Floats:
    """Return the means ``[R, RESAMPLES]`` of the items' differences from ``a``; of equal items exactly zero."""
    of_a = _scores(a, items)
    apart = np.stack([_scores(b, items) - of_a for b in several], axis=1)
    sums, count = _sums(apart, owners)
    drawn: Floats = sums.T / count
    return drawn


def _scores(result: MetricResult, items: tuple[str, ...]) -> Floats:
    return np.fromiter((result.per_item[item] for item in items), np.float64, len(items))


def _figures(results: Sequence[MetricResult], items: tuple[str, ...], owners: Owners) -> Floats:
    """Return the figures ``[R, RESAMPLES]`` of results of one kind on the same draws; equal counts give equal figures."""
    if results[-1].totals is None:
        sums, count = _sums(np.stack([_scores(result, items) for result in results], axis=1), owners)
        means: Floats = sums.T / count
        return means
    totals = [_totals(result, items) for result in results]
    size, metric = totals[-1].shape[1], load_metric(results[-1].name)
    if getattr(metric, "figures", None) is not None:
        return np.stack([_drawn(metric, own, owners) for own in totals])  # No sum over items tells its figure.
    sums, count = _sums(np.concatenate(totals, axis=1), owners)
    by_result = sums.reshape(RESAMPLES, len(results), size).swapaxes(0, 1).reshape(-1, size)
    counts = count if isinstance(count, int) else np.tile(count, len(results))
    figures: Floats = metric.aggregate(by_result, counts).reshape(len(results), RESAMPLES)
    # Sums of fractions may differ in their last digit by their place among the columns.
    for place, own in enumerate(totals[:-1]):
        if np.array_equal(own, totals[-1]):
            figures[place] = figures[-1]
    return figures


def _totals(result: MetricResult, items: tuple[str, ...]) -> Floats:
    place = {item: index for index, item in enumerate(result.per_item)}
    rows: Floats = np.asarray(result.totals)[[place[item] for item in items]]
    return rows


def figure_of(metric: Metric, totals: Floats) -> float:
    """Return the figure of the items with these ``totals`` ``[N, S]``."""
    if (figures := getattr(metric, "figures", None)) is not None:
        return float(figures(totals, np.ones((1, len(totals))))[0])
    return float(metric.aggregate(totals.sum(axis=0, keepdims=True), len(totals))[0])


def _drawn(metric: Metric, totals: Floats, owners: Owners) -> Floats:
    """Return the metric's figure on every draw of items."""
    if (figures := getattr(metric, "figures", None)) is not None:
        if owners is None:
            return np.concatenate([figures(totals, counts) for counts in _draws(len(totals))])
        return np.concatenate([figures(totals, counts[:, owners]) for counts in _draws(int(owners.max()) + 1)])
    return metric.aggregate(*_sums(totals, owners))


def _sums(totals: Floats, owners: Owners) -> tuple[Floats, Count]:
    """Return the sums ``[RESAMPLES, S]`` of the items of each draw, and how many items that are."""
    if owners is None:
        return resample(totals), len(totals)
    together = np.zeros((int(owners.max()) + 1, totals.shape[1] + 1))
    np.add.at(together, owners, np.column_stack([totals, np.ones(len(totals))]))
    drawn = resample(together)
    return drawn[:, :-1], drawn[:, -1]


def interval_of(figures: Floats) -> tuple[float, float]:
    """Return the 95% interval of a figure, given its value on each draw."""
    low, high = np.percentile(figures, _PERCENTILES)
    return float(low), float(high)


def resample(totals: Floats) -> Floats:
    """Return the sums ``[RESAMPLES, S]`` of the rows of ``totals`` ``[N, S]`` over the items of each draw."""
    return np.concatenate([drawn @ totals for drawn in _draws(len(totals))])


def _draws(count: int) -> Iterator[Floats]:
    """Yield how often each of ``count`` items occurs in each draw, a block of draws at a time: ``[B, count]``."""
    if RESAMPLES * count <= _BLOCK:
        yield _all_draws(count)
        return
    generator, rows = np.random.Generator(np.random.PCG64(SEED)), max(1, _BLOCK // count)
    for start in range(0, RESAMPLES, rows):
        yield _draw(generator, min(rows, RESAMPLES - start), count)


@functools.lru_cache(maxsize=2)
def _all_draws(count: int) -> Floats:
    drawn = _draw(np.random.Generator(np.random.PCG64(SEED)), RESAMPLES, count)
    drawn.flags.writeable = False
    return drawn


def _draw(generator: np.random.Generator, rows: int, count: int) -> Floats:
    chosen = generator.integers(0, count, (rows, count), dtype=np.int32)
    chosen += np.arange(rows, dtype=np.int32)[:, None] * count
    counts: Floats = np.bincount(chosen.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
    return counts
