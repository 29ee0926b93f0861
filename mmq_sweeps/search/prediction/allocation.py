"""Minimize a sum of damages over exact sizes: the multiple-choice knapsack problem, one option an axis.

``frontier`` merges axis by axis the pairs of size and damage that no other pair beats in both (dynamic programming over the
sizes that occur; Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, section 11.5), which answers every budget at once.
``optimum`` is exact for one budget at any size, and ``ranked`` lists the best points of one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mmq_sweeps.search.space import Point

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Spaces up to this size are enumerated.
ENUMERATED = 200_000
# Pairs kept of a partial frontier; beyond, only the least damage in each of so many equal ranges of size.
PAIRS, COARSE = 20_000, 2_000
# Factor by which an option's damage grows when it was chosen for a candidate before.
DEARER = 1.1


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
    return Frontier(bits + base_bits, sums, _traced(steps, np.arange(len(bits))), exact)


def _traced(steps: Sequence[tuple[Ints, Ints]], places: Ints) -> list[Point]:
    """Return the points that ended at ``places``, from the steps, each the places before it and the options kept."""
    chosen = np.empty((len(places), len(steps)), np.int64)
    for number in reversed(range(len(steps))):
        before, option = steps[number]
        chosen[:, number] = option[places]
        places = before[places]
    return [tuple(row) for row in chosen.tolist()]


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

    Each differs from those before it in at least ``distance`` axes. In a large space the first is the optimum, and the others
    are good, not the very next.
    """
    if np.prod([float(len(size)) for size in sizes]) <= ENUMERATED:
        return _enumerated(damages, sizes, budget, count, distance)
    tries = itertools.islice(_alternatives(damages, sizes, budget, distance), count)
    return sorted(tries, key=lambda found: found[1])


def _enumerated(
    damages: Sequence[Floats], sizes: Sequence[Ints], budget: int, count: int, distance: int
) -> list[tuple[Point, float]]:
    points = np.stack(np.meshgrid(*[np.arange(len(size)) for size in sizes], indexing="ij"), -1).reshape(-1, len(sizes))
    bits = sum(size[points[:, number]] for number, size in enumerate(sizes))
    points = points[bits <= budget]
    costs: Floats = sum((own[points[:, number]] for number, own in enumerate(damages)), np.zeros(len(points)))
    return _spread(points, costs, count, distance)


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


def _alternatives(
    damages: Sequence[Floats], sizes: Sequence[Ints], budget: int, distance: int
) -> Iterator[tuple[Point, float]]:
    """Yield the optimum, then optima of damages whose options grow dearer each time that they are chosen."""
    found: list[Point] = []
    dearer = [own.copy() for own in damages]
    while (point := optimum(dearer, sizes, budget)) is not None:
        if all(sum(a != b for a, b in zip(point, other, strict=True)) >= distance for other in found):
            found.append(point)
            yield point, sum(float(own[place]) for own, place in zip(damages, point, strict=True))
        for own, place in zip(dearer, point, strict=True):
            own[place] *= DEARER


def optimum(damages: Sequence[Floats], sizes: Sequence[Ints], budget: int) -> Point | None:
    """Return the point within ``budget`` with the least sum of damages; None if none is so small.

    Dynamic programming as in ``frontier``, without the partial points that cannot lead to the optimum: with a price on size
    (a Lagrange multiplier), the rest costs at least the sum of its cheapest options; a thinned frontier says what can be had.
    """
    known = frontier(damages, sizes, pairs=COARSE)
    place = known.within(budget)
    if place is None:
        return None
    best, point = float(known.damages[place]), known.points[place]
    if known.exact:
        return point
    price = _price(damages, sizes, budget)
    rest = [float((own + price * size).min()) for own, size in zip(damages, sizes, strict=True)]
    bits, sums = np.zeros(1, np.int64), np.zeros(1)
    steps: list[tuple[Ints, Ints]] = []
    for number, (damage, size) in enumerate(zip(damages, sizes, strict=True)):
        every = (bits[:, None] + size[None, :]).ravel()
        costs = (sums[:, None] + damage[None, :]).ravel()
        bound = costs + sum(rest[number + 1 :]) - price * (budget - every)
        kept = np.flatnonzero((every <= budget) & (bound < best))
        if not len(kept):
            return point  # Nothing is better than the best known.
        kept = kept[_undominated(every[kept], costs[kept])]
        steps.append((kept // len(size), kept % len(size)))
        bits, sums = every[kept], costs[kept]
    # A bound may leave in points that are worse than the known one, and none that is as good.
    least = int(np.argmin(sums))
    return _traced(steps, np.array([least]))[0] if sums[least] < best else point


def _price(damages: Sequence[Floats], sizes: Sequence[Ints], budget: int) -> float:
    """Return the price of a bit at which the cheapest options just fit ``budget``, by bisection."""
    low, high = 0.0, max(float(own.max() - own.min()) for own in damages) + 1e-300
    for _ in range(200):
        middle = (low + high) / 2
        taken = sum(int(size[int(np.argmin(own + middle * size))]) for own, size in zip(damages, sizes, strict=True))
        low, high = (middle, high) if taken > budget else (low, middle)
    return high
