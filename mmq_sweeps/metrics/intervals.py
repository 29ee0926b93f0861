"""Bootstrap intervals over items, and the paired difference of two cells.

Items are drawn with replacement 1,000 times from a fixed seed; metrics with equally many items share the draws. The
interval is the 2.5th to 97.5th percentile of the metric's figure on the draws. Only the items vary: document
frequencies and everything else derived from the references stay those of the whole task.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mmq_sweeps.metrics.base import Floats, Metric, Scores, mean_of_totals
from mmq_sweeps.metrics.degenerate import of_count
from mmq_sweeps.metrics.names import load_metric
from mmq_sweeps.metrics.result import MetricResult

RESAMPLES = 1000
SEED = 20260
_PERCENTILES = (2.5, 97.5)
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


def result_of(metric: Metric, items: tuple[str, ...], scores: Scores) -> MetricResult:
    """Return the result of ``scores`` over ``items``, with its interval."""
    draws = _drawn(metric, scores.totals) if items else np.full(1, np.nan)
    return MetricResult(
        name=metric.name,
        value=scores.value,
        per_item=dict(zip(items, scores.per_item.tolist(), strict=True)),
        interval=_interval(draws),
        higher_is_better=metric.higher_is_better,
        totals=None if scores.totals.shape[1] == 1 else scores.totals,
        definition=getattr(metric, "definition", ""),
        warnings=(*scores.warnings, *of_count(len(items))),
    )


def paired_difference(a: MetricResult, b: MetricResult) -> PairedDifference:
    """Return how much higher ``b`` is than ``a``, drawing the same items for both, so that shared effects cancel.

    Raises ValueError if metrics or items differ, or if a figure that is not the mean of its items lacks its ``totals``.
    """
    if a.name != b.name:
        raise ValueError(f"Cannot compare {a.name} with {b.name}")
    if a.per_item.keys() != b.per_item.keys():
        odd = sorted(a.per_item.keys() ^ b.per_item.keys())
        raise ValueError(f"{a.name}: the results are over different items, for example {odd[0]!r}")
    if not a.per_item:
        raise ValueError(f"{a.name}: there are no items to compare")
    items = tuple(a.per_item)
    figures = [_figures(result, items) for result in (a, b)]
    return PairedDifference(a.name, b.value - a.value, _interval(figures[1] - figures[0]))


def _figures(result: MetricResult, items: tuple[str, ...]) -> Floats:
    if result.totals is None:
        per_item = np.array([result.per_item[item] for item in items])
        if not np.isclose(per_item.mean(), result.value, rtol=1e-9, atol=1e-12, equal_nan=True):
            raise ValueError(f"{result.name} is not the mean of its items: keep the result's totals to compare it")
        return mean_of_totals(resample(per_item[:, None]), len(items))
    place = {item: index for index, item in enumerate(result.per_item)}
    totals = result.totals[[place[item] for item in items]]
    return _drawn(load_metric(result.name), totals)


def figure_of(metric: Metric, totals: Floats) -> float:
    """Return the figure of the items with these ``totals`` ``[N, S]``."""
    if (figures := getattr(metric, "figures", None)) is not None:
        return float(figures(totals, np.ones((1, len(totals))))[0])
    return float(metric.aggregate(totals.sum(axis=0, keepdims=True), len(totals))[0])


def _drawn(metric: Metric, totals: Floats) -> Floats:
    """Return the metric's figure on every draw of items."""
    if (figures := getattr(metric, "figures", None)) is not None:
        return np.concatenate([figures(totals, counts) for counts in _draws(len(totals))])
    return metric.aggregate(resample(totals), len(totals))


def _interval(figures: Floats) -> tuple[float, float]:
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
