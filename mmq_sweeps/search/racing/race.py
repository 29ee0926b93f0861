"""A race: candidates are measured on the same growing set of items, and dropped when a paired test says so.

Rounds are disjoint ranges of one random order of the items, so no candidate meets an item twice. After a round each candidate
is compared with every other that ran the same rounds, by the mean of their paired differences. The best candidate is
dropped with a probability of at most ``error`` in the whole race: a one-sided t-test of each of the other ``most`` - 1
candidates against it, at each of the ``rounds`` looks, gets its share of ``error`` (Bonferroni over pairs and looks; later
looks get larger shares, an alpha-spending plan as in Lan and DeMets, Biometrika 70, 1983). Races of this kind: Maron and
Moore, Hoeffding Races, 1994; Birattari et al., F-Race, 2002.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Round:
    """A range of the order of items that the candidates ``names`` are to be measured on."""

    number: int
    start: int
    stop: int
    names: tuple[str, ...]


@dataclass
class Race:
    """Candidates by name, highest mean score wins. ``next`` asks for scores and ``tell`` takes them.

    Args:
        ends: where each round stops in the order of items; the first starts at ``start``.
        error: bound on the probability that the best candidate is dropped.
        most: bound on how many candidates ever run.
        least: rounds go on until at most so many candidates are left.
    """

    ends: Sequence[int]
    error: float = 0.05
    most: int = 8
    least: int = 1
    start: int = 0
    _scores: dict[str, dict[int, Floats]] = field(default_factory=dict, repr=False)
    _joined: dict[str, int] = field(default_factory=dict, repr=False)
    # The round after which each dropped candidate was.
    dropped: dict[str, int] = field(default_factory=dict, repr=False)
    _round: int = 0

    def add(self, name: str) -> None:
        """Let a candidate run from the next round on; a ValueError if ``most`` run already."""
        if name in self._joined:
            return
        if len(self._joined) >= self.most:
            raise ValueError(f"a race of at most {self.most} candidates has no place for {name}")
        self._joined[name] = self._round
        self._scores[name] = {}

    def withdraw(self, name: str) -> None:
        """Drop a candidate that cannot be measured."""
        self.dropped[name] = self._round

    @property
    def running(self) -> list[str]:
        """The candidates that are not dropped, in the order in which they joined."""
        return [name for name in self._joined if name not in self.dropped]

    def next(self) -> Round | None:
        """Return the round to measure; None if few enough are left or the items have run out."""
        if self._round == len(self.ends) or len(self.running) <= self.least:
            return None
        return self._asked()

    def _asked(self) -> Round:
        start = self.ends[self._round - 1] if self._round else self.start
        return Round(self._round, start, self.ends[self._round], tuple(self.running))

    def tell(self, scores: Mapping[str, Sequence[float] | Floats]) -> None:
        """Take the scores of every running candidate on the items of ``next``, in their order, and drop the worse ones."""
        if self._round == len(self.ends):
            raise ValueError("the race has ended")
        asked = self._asked()
        for name in asked.names:
            own = np.asarray(scores[name], dtype=np.float64)
            if len(own) != asked.stop - asked.start:
                raise ValueError(f"{name}: {len(own)} scores for {asked.stop - asked.start} items")
            self._scores[name][asked.number] = own
        self._drop(asked.number)
        self._round += 1

    def _drop(self, number: int) -> None:
        share = spent(number, len(self.ends), self.error) / max(1, self.most - 1)
        names = self.running
        worse = [name for name in names if any(self._beaten(name, other, share) for other in names if other != name)]
        self.dropped |= dict.fromkeys(worse, number)

    def _beaten(self, name: str, other: str, share: float) -> bool:
        difference = self.difference(other, name)
        return len(difference) > 1 and p_value(difference) < share

    def difference(self, first: str, second: str) -> Floats:
        """Return scores of ``first`` minus those of ``second`` on the items of the rounds that both ran."""
        both = [number for number in self._scores[first] if number in self._scores[second]]
        if not both:
            return np.empty(0)
        return np.concatenate([self._scores[first][number] - self._scores[second][number] for number in both])


@dataclass
class Threshold(Race):
    """A race for the smallest candidate whose mean keeps ``share`` of a reference's.

    A candidate is dropped when a paired test says that it keeps less, and when a smaller one is said to keep it. A candidate
    that keeps ``share`` is dropped for less, or one that does not spared for it, with a probability of at most ``error`` in the
    whole race.
    """

    share: float = 1.0
    sizes: dict[str, int] = field(default_factory=dict)
    REFERENCE: ClassVar[str] = "reference"

    def tell(self, scores: Mapping[str, Sequence[float] | Floats]) -> None:
        """Take scores as ``Race.tell`` does, and those of ``REFERENCE``."""
        if self._round < len(self.ends):
            own = np.asarray(scores[self.REFERENCE], dtype=np.float64)
            self._scores.setdefault(self.REFERENCE, {})[self._round] = own
        super().tell(scores)

    def _drop(self, number: int) -> None:
        share = spent(number, len(self.ends), self.error) / (2 * max(1, self.most))
        kept = [name for name in self.running if p_value(self._above(name)) < share]
        least = min((self.sizes[name] for name in kept), default=None)
        for name in self.running:
            larger = least is not None and self.sizes[name] > least
            if larger or p_value(-self._above(name)) < share:
                self.dropped[name] = number

    def _above(self, name: str) -> Floats:
        rounds = self._scores[name]
        found: Floats = np.concatenate(
            [own - self.share * self._scores[self.REFERENCE][number] for number, own in rounds.items()]
        )
        return found


def spent(number: int, rounds: int, error: float) -> float:
    """Return the share of ``error`` for the look after round ``number``; the shares of all looks sum to ``error``."""
    return error * 2 * (number + 1) / (rounds * (rounds + 1))


def p_value(difference: Floats) -> float:
    """Return the one-sided p-value of the hypothesis that the mean of ``difference`` is at most zero, by Student's t.

    Differences that are all alike say nothing about their spread; their p-value is that of a sign test.
    """
    count, mean = len(difference), float(difference.mean())
    spread = float(difference.std(ddof=1))
    if spread <= 1e-12 * max(1.0, abs(mean)):
        return 1.0 if mean <= 0 else 0.5**count
    return float(stdtr(count - 1, -mean / (spread / np.sqrt(count))))
