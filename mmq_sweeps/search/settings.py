"""Settings of a search, and how they follow from the number of items that there are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mmq_sweeps.errors import ConfigError
from mmq_sweeps.search.measuring import EVALUATION, count_of_items


@dataclass(frozen=True)
class Settings:
    """Settings of a search.

    Args:
        metric: name of the metric that is kept high.
        seed: draws the order of the search's items.
        first: how many items the first batch is measured on.
        rounds: how many further items each round of a race adds.
        last: how many further items the last ones are measured on.
        forced: how many items single units are asked for likelihoods of; 0 leaves these passes out.
        error: bound on the probability that a race drops its best candidate.
        candidates: how many predicted candidates of each budget race, besides uniform points.
        newcomers: how many candidates join a race between two rounds.
        tolerance: a share of full precision's score. A race ends when nobody is expected to gain more over the leader, and a
            candidate that is expected to gain less over the predicted best does not begin.
        final: split of the final figures.
        optimistic: whether the search's items are those of the final figures.
    """

    metric: str
    seed: int = 0
    first: int = 24
    rounds: tuple[int, ...] = (24, 40, 64)
    last: int = 40
    forced: int = 64
    error: float = 0.05
    candidates: int = 6
    newcomers: int = 1
    tolerance: float = 0.002
    final: str = EVALUATION
    optimistic: bool = False

    @property
    def ends(self) -> list[int]:
        """Where each round stops in the order of items."""
        return [int(end) for end in self.first + np.cumsum(self.rounds)]

    @property
    def items(self) -> int:
        """How many items of the search split there must be."""
        return self.first + sum(self.rounds) + self.last

    def finer(self) -> Settings:
        """Return the settings for axes finer than parts, whose candidates are many and alike: more items."""
        return replace(self, first=32, rounds=(24, 48, 96), last=56, tolerance=self.tolerance / 2)

    def within(self, items: int) -> Settings:
        """Return the settings for a split of ``items``: if they are too few, every stage gets its share of them."""
        if items >= self.items:
            return replace(self, forced=min(self.forced, items))
        share = items / self.items
        rounds = tuple(max(2, int(count * share)) for count in self.rounds)
        first = max(2, int(self.first * share))
        last = max(0, items - first - sum(rounds))
        if first + sum(rounds) > items:
            told = f"{count_of_items(items)} {'is' if items == 1 else 'are'} too few"
            raise ConfigError(f"the search: {told} to compare candidates on; raise task.limit.")
        return replace(self, first=first, rounds=rounds, last=last, forced=min(self.forced, items))
