"""The first batch of a search: full precision, the uniform points, and every part, or axis, at its lowest option alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmq_sweeps.errors import ConfigError
from mmq_sweeps.search.measuring import NOTHING, SEARCH, STAGES, Items, Measurement, Outcome, count_of_items
from mmq_sweeps.search.prediction import sensitivity
from mmq_sweeps.search.settings import Settings
from mmq_sweeps.search.space import Point, Space


def quantized_uniform(space: Space) -> list[Point]:
    """Return the points of ``space`` with one option everywhere, without full precision."""
    full = sensitivity.full_precision(space)
    return [point for point in space.uniform() if point != full]


@dataclass(frozen=True)
class FirstBatch:
    """Measurements that start a search of ``space``, and conclusions from their outcomes."""

    space: Space
    settings: Settings

    def measurements(self) -> list[Measurement]:
        """Return the batch; its first measurement is full precision."""
        items = Items(SEARCH, 0, self.settings.first)
        points = [None, *quantized_uniform(self.space), *self._lowered_parts()]
        batch = [Measurement(point, items, STAGES[0]) for point in dict.fromkeys(points)]
        if self.settings.forced and self.space.finer:
            forced = Items(SEARCH, 0, self.settings.forced, teacher_forced=True)
            batch += [Measurement(point, forced, STAGES[0]) for point in (None, *self._lowered_axes())]
        return batch

    def _lowered_parts(self) -> list[Point]:
        best, least = self.space.best_options, self.space.smallest
        parts = dict.fromkeys(axis.part for axis in self.space.axes)
        return [
            tuple(least[n] if axis.part == part else best[n] for n, axis in enumerate(self.space.axes))
            for part in parts
        ]

    def _lowered_axes(self) -> list[Point]:
        best, least = self.space.best_options, self.space.smallest
        return [(*best[:n], least[n], *best[n + 1 :]) for n in range(len(self.space.axes))]

    def refuse_nothing(self, outcomes: Mapping[Measurement, Outcome]) -> None:
        """Raise a ConfigError if full precision failed or scores nothing, or no quantized point scores more than nothing."""
        batch = self.measurements()
        full = outcomes[batch[0]].result
        name = self.settings.metric
        if full is None:
            raise ConfigError("the search: full precision could not be measured; its record has the error.")
        on = count_of_items(full.count)
        if full.value <= 0:
            raise ConfigError(
                f"hydra.sweeper.metric={name}: full precision has {full.value:g} on {on}, and a search needs a "
                "score above zero, of which shares are kept; choose another metric or task."
            )
        plain = [outcomes[one].result for one in batch[1:] if not one.items.teacher_forced]
        best = max((result.value for result in plain if result is not None), default=0.0)
        if best <= NOTHING * full.value:
            told = f"at most {best:.2g} of {full.value:.4g}" if best > 0 else "nothing"
            raise ConfigError(
                f"hydra.sweeper.metric={name}: every quantized candidate scores {told} on {on}; add higher "
                "bit-widths or a calibrated method."
            )

    def divergences(self, outcomes: Mapping[Measurement, Outcome]) -> dict[int, tuple[int, float]]:
        """Return the option and the divergence of every axis that was lowered alone; empty if that was not measured."""
        forced = [one for one in outcomes if one.items.teacher_forced]
        full = next((outcomes[one].predictions for one in forced if one.point is None), {})
        found = {}
        for number, point in enumerate(self._lowered_axes() if full else []):
            outcome = next((outcomes[one] for one in forced if one.point == point), None)
            if outcome is not None and outcome.result is not None:
                found[number] = point[number], sensitivity.divergence(full, outcome.predictions)
        return found
