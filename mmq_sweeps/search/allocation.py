"""Minimize a sum of damages over exact sizes: the multiple-choice knapsack problem, one option an axis.

``frontier`` merges axis by axis the pairs of size and damage that no other pair beats in both (dynamic programming over the
sizes that occur; Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, section 11.5), which answers every budget at once.
``ranked`` lists the best points of one budget: by enumeration if there are few points, else by SciPy's HiGHS with cuts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array, vstack

from mmq_sweeps.search.space import Point

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Spaces up to this size are enumerated.
ENUMERATED = 200_000
# Pairs kept of a partial frontier; beyond, only the least damage in each of so many equal ranges of size.
PAIRS = 20_000


@dataclass(frozen=True)
class Frontier:
    """Points that no other point beats in both size and predicted damage, smallest first.

    ``exact`` is False if there were so many that only the best of each range of sizes was kept on the way.
    """

    bits: Ints
    damages: Floats
    points: list[Point]
    exact: bool

    def within(self, bits: int) -> int | None:
        """Return the place of the point with the least damage of at most ``bits``; None if none is so small."""
        place = int(np.searchsorted(self.bits, bits, side="right")) - 1
        return place if place >= 0 else None


def frontier(damages: Sequence[Floats], sizes: Sequence[Ints], base_bits: int = 0, pairs: int = PAIRS) -> Frontier:
    """Return the whole frontier of the sum of ``damages``, by axis and option, over ``sizes`` plus ``base_bits``."""
    bits, sums, exact = np.zeros(1, np.int64), np.zeros(1), True
    steps: list[tuple[Ints, Ints]] = []
    for damage, size in zip(damages, sizes, strict=True):
        every = (bits[:, None] + size[None, :]).ravel()
        costs = (sums[:, None] + damage[None, :]).ravel()
        kept = _undominated(every, costs)
        if len(kept) > pairs:
            kept, exact = _thinned(kept, every, pairs), False
        steps.append((kept // len(size), kept % len(size)))
        bits, sums = every[kept], costs[kept]
    places = np.arange(len(bits))
    chosen = np.empty((len(bits), len(steps)), np.int64)
    for number in reversed(range(len(steps))):
        before, option = steps[number]
        chosen[:, number] = option[places]
        places = before[places]
    return Frontier(bits + base_bits, sums, [tuple(row) for row in chosen.tolist()], exact)


def _undominated(bits: Ints, costs: Floats) -> Ints:
    """Return the places of the pairs that no other pair beats, smallest first."""
    order = np.lexsort((costs, bits))
    sums = costs[order]
    best = np.minimum.accumulate(sums)
    keep = np.concatenate([[True], sums[1:] < best[:-1]])
    found: Ints = order[keep]
    return found


def _thinned(kept: Ints, bits: Ints, pairs: int) -> Ints:
    """Return of each of ``pairs`` equal ranges of size the pair with the least damage, which is the largest."""
    own = bits[kept]
    bucket = (own - own[0]) * pairs // (own[-1] - own[0] + 1)
    last = np.concatenate([bucket[1:] != bucket[:-1], [True]])
    last[0] = True  # The smallest, so that every budget that can be kept is kept.
    found: Ints = kept[last]
    return found


def ranked(
    damages: Sequence[Floats], sizes: Sequence[Ints], budget: int, count: int, distance: int = 1
) -> list[tuple[Point, float]]:
    """Return up to ``count`` points within ``budget`` with the least sums of damages, best first, with their sums.

    Each differs from those before it in at least ``distance`` axes.
    """
    if np.prod([float(len(size)) for size in sizes]) <= ENUMERATED:
        return _enumerated(damages, sizes, budget, count, distance)
    return list(itertools.islice(_solved(damages, sizes, budget, distance), count))


def best_of(
    score: Callable[[Ints], Floats], sizes: Sequence[Ints], budget: int, count: int, distance: int = 1
) -> list[tuple[Point, float]]:
    """Return ``ranked`` for damages that are no sum: ``score`` maps points ``[N, axes]`` to damages. Enumerates all points."""
    points = np.stack(np.meshgrid(*[np.arange(len(size)) for size in sizes], indexing="ij"), -1).reshape(-1, len(sizes))
    bits = sum(size[points[:, number]] for number, size in enumerate(sizes))
    points = points[bits <= budget]
    return _spread(points, score(points), count, distance)


def _enumerated(
    damages: Sequence[Floats], sizes: Sequence[Ints], budget: int, count: int, distance: int
) -> list[tuple[Point, float]]:
    def score(points: Ints) -> Floats:
        total: Floats = sum((own[points[:, number]] for number, own in enumerate(damages)), np.zeros(len(points)))
        return total

    return best_of(score, sizes, budget, count, distance)


def _spread(points: Ints, costs: Floats, count: int, distance: int) -> list[tuple[Point, float]]:
    found: list[tuple[Point, float]] = []
    chosen = np.empty((0, points.shape[1] if len(points) else 0), np.int64)
    for place in np.argsort(costs, kind="stable"):
        if distance <= 1 or not len(chosen) or int((chosen != points[place]).sum(axis=1).min()) >= distance:
            chosen = np.vstack([chosen, points[place][None]])
            found.append((tuple(points[place].tolist()), float(costs[place])))
            if len(found) == count:
                break
    return found


def _solved(
    damages: Sequence[Floats], sizes: Sequence[Ints], budget: int, distance: int
) -> Iterator[tuple[Point, float]]:
    """Yield points from the best on: an integer programme each, with a cut against those before."""
    lengths = [len(size) for size in sizes]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    columns = np.arange(starts[-1])
    rows = np.repeat(np.arange(len(lengths)), lengths)
    one_each = csr_array((np.ones(len(columns)), (rows, columns)))
    costs, weights = np.concatenate(damages), np.concatenate(sizes).astype(np.float64)
    # Sizes of billions of bits against a solver's absolute tolerance.
    scale = float(weights.max()) / 1000
    cuts: list[Ints] = []
    while True:
        constraints = [
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(csr_array(weights[None] / scale), -np.inf, budget / scale),
        ]
        if cuts:
            matrix = vstack(
                [csr_array((np.ones(len(cut)), (np.zeros(len(cut), int), cut)), (1, len(columns))) for cut in cuts]
            )
            constraints.append(LinearConstraint(matrix, -np.inf, len(lengths) - distance))
        found = milp(
            costs * (1000 / (np.abs(costs).max() or 1.0)), integrality=np.ones(len(columns)), bounds=Bounds(0, 1),
            constraints=constraints, options={"mip_rel_gap": 0.0},
        )  # fmt: skip
        if found.x is None:
            return
        chosen = columns[found.x > 0.5]
        cuts.append(chosen)
        point = tuple((chosen - starts[:-1]).tolist())
        if sum(int(size[place]) for size, place in zip(sizes, point, strict=True)) <= budget:
            yield point, float(costs[chosen].sum())
