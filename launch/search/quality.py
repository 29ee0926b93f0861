"""Search for the smallest assignment that keeps a share of full precision's score.

The sizes to search at are read off the frontier that is predicted after the first batch: where it first keeps the share, and
where it keeps some more, since predictions err. The smallest answer that is believed to keep the share is the one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from mmq_sweeps.search.loop import Answer, Search
from mmq_sweeps.search.space import Budget, Space

KIND = "min_quality"
# Parts of what a share lacks of one that the sizes are searched at.
RUNGS = (0.0, 1 / 3, 2 / 3)


def text_of(share: float) -> str:
    """Return a budget of quality as it is asked for."""
    return f"{KIND}={share:g}"


def unknown_budgets(shares: Sequence[float], space: Space) -> list[Budget]:
    """Return as many budgets as will be searched at, of sizes that are not known yet."""
    return [Budget(text_of(share), space.full_bits - 1) for share in shares for _ in RUNGS]


def budgets_of(shares: Sequence[float], course: Search) -> list[Budget]:
    """Return the budgets to search at, by the frontier that ``course`` predicts after its first batch."""
    found = course.predicted()
    assert course.model is not None
    kept = [course.model.relative(point) for point in found.points]
    last = len(found.points) - 1

    def rungs(share: float) -> Iterator[Budget]:
        places = [next((n for n, own in enumerate(kept) if own >= share + (1 - share) * rung), last) for rung in RUNGS]
        for place in dict.fromkeys(places):
            yield Budget(text_of(share), min(int(found.bits[place]), course.space.full_bits - 1))

    return [budget for share in shares for budget in rungs(share)]


def chosen(shares: Sequence[float], answers: Sequence[Answer]) -> list[Answer]:
    """Return for each share the smallest answer that is believed to keep it, else the best; not ``reached`` then."""
    found = []
    for share in shares:
        own = sorted((one for one in answers if one.budget.text == text_of(share)), key=lambda one: one.bits)
        keeping = [one for one in own if one.predicted >= share]
        found.append(keeping[0] if keeping else replace(max(own, key=lambda one: one.predicted), reached=False))
    return found
