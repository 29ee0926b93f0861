"""Pareto frontier: the cells that no other cell beats in both bits per weight and quality.

A cell is on the frontier unless another has at most its bits per weight and at least its quality, with at least one of the
two strictly better. Cells that tie in both are all on it. With per-item scores, items are bootstrapped, the same draw for
every cell, and each draw has its own frontier: a cell's probability is the share of draws in which it is on the frontier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd

from analysis.cells import Cells
from analysis.cells.columns import METRIC
from analysis.cells.remarks import defined
from analysis.cells.selections import assignment, methods_in, of_method
from analysis.cells.table import MOST_SCORED
from analysis.measures.quality import Quality
from mmq_sweeps.metrics.intervals import Owners
from mmq_sweeps.reporting.counts import out_of

RESAMPLES = 1000
SEED = 20260
FALSE_DISCOVERY_RATE = 0.05
_BLOCK = 50
# Counts of draws times items that are kept.
_KEPT = 6_000_000


@dataclass(frozen=True)
class Frontier:
    """The frontier of a family by a single metric.

    ``cells`` has the family's rows with ``on_frontier``. With per-item scores it also has the ``probability`` of being on
    the frontier; ``low`` and ``high``, the metric's 95% interval; and, if a cell has full precision, the ``difference``
    from it with ``p_value`` and ``significant`` (false discovery rate controlled). ``full`` is the metric at full
    precision, ``None`` if no cell has it. ``method`` is set if all other cells share it.
    """

    title: str
    quality: Quality
    bpw: str
    full: float | None
    cells: pd.DataFrame
    notes: tuple[str, ...]
    method: str = ""

    @property
    def metric(self) -> str:
        return self.quality.metric

    @property
    def rows(self) -> pd.DataFrame:
        """The cells on the frontier, from the fewest bits per weight to the most."""
        kept = self.quality.fewest_bits(self.cells[self.cells["on_frontier"]], self.bpw)
        return kept.assign(assignment=[assignment(row) for _, row in kept.iterrows()])

    def hypervolume(self, most: float = 16.0) -> float | None:
        """Return the area, in bits x quality, dominated by the frontier up to ``most`` bits per weight, from quality 0.

        ``None`` if lower is better: such a metric has no worst value to measure from.
        """
        if not self.quality.higher:
            return None
        points = self.rows[[self.bpw, f"{METRIC}{self.metric}"]].drop_duplicates().to_numpy(dtype=np.float64)
        points = points[points[:, 0] <= most]
        if not len(points):
            return 0.0
        edges = np.append(points[:, 0], most)
        return float(np.sum(np.diff(edges) * points[:, 1].clip(min=0)))

    def smallest_within(self, share: float) -> pd.Series | None:
        """Return the smallest cell that keeps ``share`` of full precision's metric; ``None`` if no cell does."""
        limit = None if self.full is None else self.quality.limit(self.full, share)
        if limit is None:
            return None
        kept = self.rows[self.quality.keeps(self.rows, limit)]
        return None if kept.empty else kept.iloc[0]

    def best_within(self, budget: float) -> pd.Series | None:
        """Return the best cell of at most ``budget`` bits per weight; ``None`` if all have more."""
        rows = self.rows[self.rows[self.bpw] <= budget]
        return None if rows.empty else self.quality.best(rows, self.bpw).iloc[0]


def frontiers(
    cells: Cells, metric: str | None = None, bpw: str = "bpw_paper", by_method: bool = False
) -> list[Frontier]:
    """Compute the frontier of every family of comparable cells by ``metric``, by default the family's first.

    ``bpw`` is the column of bits per weight. ``by_method`` computes a frontier per method, each with the full-precision
    cells. Cells without the metric or without ``bpw`` are left out, with a note. Raises ValueError if no finished cell has
    both.
    """
    done = cells.finished
    found = []
    for title, family in done.families():
        name = metric or family.first_metric
        if name in family.metrics and bpw in family.frame and _both(family.frame, name, bpw).any():
            found += _of_family(title, family, name, bpw, by_method)
    if not found:
        asked = f"metric {metric!r}" if metric else "metric"
        raise ValueError(
            f"no finished {'quantized ' if by_method else ''}cell has a {asked} and {bpw}; "
            f"the cells have {', '.join(done.metrics) or 'no metric'}"
        )
    return found


def _both(rows: pd.DataFrame, metric: str, bpw: str) -> pd.Series:
    return rows[f"{METRIC}{metric}"].notna() & rows[bpw].notna()


def _of_family(title: str, family: Cells, metric: str, bpw: str, by_method: bool) -> list[Frontier]:
    if not by_method:
        return [_frontier(title, family, metric, bpw)]
    methods = methods_in(family.frame)
    there = set(family.frame.loc[_both(family.frame, metric, bpw), "method"])
    found = [
        replace(_frontier(f"{title}, {name}", family.of(of_method(family.frame, name)), metric, bpw), method=name)
        for name in methods
        if name in there
    ]
    if found and (lacking := [name for name in methods if name not in there]):
        note = f"no frontier of {', '.join(lacking)}: no cell of it has both {metric} and {bpw}"
        found[0] = replace(found[0], notes=(*found[0].notes, note))
    return found


def _frontier(title: str, family: Cells, metric: str, bpw: str) -> Frontier:
    rows = family.frame[_both(family.frame, metric, bpw)].reset_index(drop=True)
    quality = Quality.of(family, metric)
    score = quality.score(rows)
    bits = rows[bpw].to_numpy(dtype=np.float64)
    # Full precision's quality is known even if its bits per weight are not.
    full = quality.full(family.frame)
    notes = []
    if len(rows) < len(family.frame):
        notes.append(
            f"{out_of(len(family.frame) - len(rows), len(family.frame), 'cell', 'lacks', 'lack')} {metric} or {bpw}: left out"
        )
    if full is None:
        notes.append("no full-precision cell: what is kept of full precision is not known; run method=none")
    if len(rows) == 1:
        notes.append("one cell only: it is the frontier by itself")
    elif np.ptp(score) == 0:
        notes.append(f"every cell has the same {quality.label}: the one with the fewest bits is the frontier")
    if full is not None and quality.limit(full, 1.0) is None:
        notes.append(f"full precision has a {quality.label} of {full:.4f}: a share of it means nothing")
    table = rows.assign(on_frontier=non_dominated(bits, score))
    scores, owners = family.scores(rows, metric), family.owners(rows, metric)
    if len(rows) > MOST_SCORED:
        notes.append(f"more than {MOST_SCORED:,} cells: their items are not read, so there are no probabilities")
    elif scores is None:
        notes.append("no per-item scores of all cells: no probabilities")
    elif not np.allclose(scores.mean(axis=1), rows[quality.column]):
        notes.append(f"{quality.label} is no mean of items: no probabilities")
    else:
        table = table.assign(**_uncertainty(bits, scores, owners, (rows["method"] == "none").to_numpy(), quality.sign))
    notes += defined(rows, metric)
    return Frontier(title, quality, bpw, full, table, tuple(notes))


def non_dominated(bits: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Return a mask ``[N]`` of the cells that no other beats with fewer or equal ``bits`` and higher or equal ``quality``,
    at least one of the two strictly.
    """
    order = np.lexsort((-quality, bits))
    bits, quality = bits[order], quality[order]
    first = np.r_[True, bits[1:] > bits[:-1]]
    best_here = quality[np.maximum.accumulate(np.where(first, np.arange(len(bits)), 0))]
    before = np.r_[-np.inf, np.maximum.accumulate(quality)[:-1]]
    best_before = before[np.maximum.accumulate(np.where(first, np.arange(len(bits)), 0))]
    kept = np.empty(len(bits), dtype=bool)
    kept[order] = (quality == best_here) & (quality > best_before)
    return kept


def _uncertainty(
    bits: np.ndarray, scores: np.ndarray, owners: Owners, full: np.ndarray, sign: float
) -> dict[str, np.ndarray]:
    """Bootstrap over items the columns of ``Frontier.cells``.

    ``scores`` is ``[cells, items]``, those of equal ``owners`` drawn together; ``sign`` is 1 if higher is better, else -1.
    ``full`` ``[cells]`` marks full precision.
    """
    draws = resampled_means(scores, owners)
    on = np.mean([non_dominated(bits, sign * draw) for draw in draws], axis=0)
    low, high = np.percentile(draws, (2.5, 97.5), axis=0)
    columns = {"probability": on, "low": low, "high": high}
    if full.any():
        baseline = int(np.flatnonzero(full)[0])
        difference = draws - draws[:, baseline : baseline + 1]
        # Two-sided, and never zero: N draws cannot resolve a probability below 1 / N.
        below, above = (difference <= 0).mean(axis=0), (difference >= 0).mean(axis=0)
        p_value = np.clip(2 * np.minimum(below, above), 1 / len(draws), 1)
        p_value[baseline] = 1.0
        columns |= {
            "difference": scores.mean(axis=1) - scores[baseline].mean(),
            "p_value": p_value,
            "significant": discoveries(p_value),
        }
    return columns


def resampled_means(
    scores: np.ndarray, owners: Owners = None, resamples: int = RESAMPLES, seed: int = SEED
) -> np.ndarray:
    """Return means ``[resamples, cells]`` of ``scores`` ``[cells, items]`` over items drawn with replacement.

    Every cell sees the same draws. Items of equal ``owners`` ``[items]`` are drawn together.
    """
    sizes = None if owners is None else np.bincount(owners)
    if owners is not None and sizes is not None:
        together = np.zeros((len(sizes), len(scores)))
        np.add.at(together, owners, scores.T)
        scores = together.T
    items, means = scores.shape[1], np.empty((resamples, len(scores)))
    for start, counts in _drawn_counts(items, resamples, seed):
        drawn = items if sizes is None else (counts @ sizes)[:, None]
        means[start : start + len(counts)] = counts @ scores.T / drawn
    return means


def drawn_scores(family: Cells, rows: pd.DataFrame, quality: Quality) -> np.ndarray | None:
    """Return ``resampled_means`` of ``rows``, negated if lower is better; None unless their items' mean is the metric."""
    scores = family.scores(rows, quality.metric)
    if scores is None or not np.allclose(scores.mean(axis=1), rows[quality.column]):
        return None
    return quality.sign * resampled_means(scores, family.owners(rows, quality.metric))


def _drawn_counts(items: int, resamples: int, seed: int) -> Iterable[tuple[int, np.ndarray]]:
    """Return how often each item is in each draw, a block of draws at a time; few items are drawn once for all families."""
    return _kept_counts(items, resamples, seed) if items * resamples <= _KEPT else _counts(items, resamples, seed)


@lru_cache(maxsize=2)
def _kept_counts(items: int, resamples: int, seed: int) -> list[tuple[int, np.ndarray]]:
    return list(_counts(items, resamples, seed))


def _counts(items: int, resamples: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    generator = np.random.Generator(np.random.PCG64(seed))
    for start in range(0, resamples, _BLOCK):
        rows = min(_BLOCK, resamples - start)
        yield start, generator.multinomial(items, np.full(items, 1 / items), size=rows).astype(np.float64)


def discoveries(p_values: np.ndarray, rate: float = FALSE_DISCOVERY_RATE) -> np.ndarray:
    """Return a mask of the significant tests at the false discovery rate ``rate`` (Benjamini and Hochberg 1995)."""
    order = np.argsort(p_values)
    passed = p_values[order] <= rate * np.arange(1, len(order) + 1) / len(order)
    last = int(np.flatnonzero(passed)[-1]) + 1 if passed.any() else 0
    found = np.zeros(len(order), dtype=bool)
    found[order[:last]] = True
    return found
