"""The race of one budget, whose candidates are points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mmq_sweeps.search.racing.race import Race, Threshold
from mmq_sweeps.search.space import Budget, Point


@dataclass
class Contest:
    """The race of one budget."""

    budget: Budget
    race: Race
    bits: Callable[[Point], int]
    points: dict[str, Point] = field(default_factory=dict)

    def add(self, point: Point) -> None:
        """Let a point run from the next round on, if there is room for it."""
        name = "-".join(map(str, point))
        if name not in self.points and len(self.points) < self.race.most:
            self.points[name] = point
            if isinstance(self.race, Threshold):
                self.race.sizes[name] = self.bits(point)
            self.race.add(name)

    @property
    def running(self) -> list[Point]:
        """The points that are not dropped."""
        return [self.points[name] for name in self.race.running]
