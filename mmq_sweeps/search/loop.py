"""The loop of a search as a state machine: it asks for batches of measurements and is told their outcomes.

It keeps no file and draws nothing at random but from its seed: a search that is started again asks for the same
measurements, which the store then has. A driver runs::

    search = Search(space, budgets, settings, errors)
    while batch := search.ask():
        search.tell([measure(one) for one in batch])     # cells of the store, in any order, in parallel if it likes
    answers = search.answers()

The first batch measures full precision, the uniform points, and every part at its lowest option alone, on few items; all units
are solved then, so ``errors`` is called after it. If axes are finer than parts, single units at their lowest options are asked
for the likelihood of right texts as well, which says how far each takes the model from full precision.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmq_sweeps.errors import ConfigError
from mmq_sweeps.metrics.intervals import paired_difference, paired_share
from mmq_sweeps.metrics.result import MetricResult
from mmq_sweeps.search.measuring import SEARCH, STAGES, Answer, Items, Measurement, Outcome
from mmq_sweeps.search.prediction import sensitivity
from mmq_sweeps.search.prediction.allocation import Frontier, frontier, ranked
from mmq_sweeps.search.prediction.first_batch import FirstBatch, quantized_uniform
from mmq_sweeps.search.prediction.model import DamageModel
from mmq_sweeps.search.prediction.observations import aligned, observations
from mmq_sweeps.search.racing.contest import Contest
from mmq_sweeps.search.racing.race import Race, Round, Threshold
from mmq_sweeps.search.settings import Settings
from mmq_sweeps.search.space import Budget, Point, Space

Floats = NDArray[np.float64]
# As ``sensitivity.read_errors`` returns them.
Errors = Sequence[Sequence[Mapping[str, float | None] | None]]
Batch = list[Measurement]
Told = dict[Measurement, Outcome]


class Search:
    """A search of ``space`` for the points of best quality within ``budgets``; see the module."""

    def __init__(
        self,
        space: Space,
        budgets: Sequence[Budget],
        settings: Settings,
        errors: Callable[[], Errors | None] = lambda: None,
    ) -> None:
        """``errors`` returns the errors of the units that the store has by then, as ``sensitivity.read_errors`` does."""
        self.space, self.budgets, self.settings = space, list(budgets), settings
        self.outcomes: Told = {}
        self.model: DamageModel | None = None
        self._errors = errors
        self._bits: dict[Point, int] = {}
        self._failed: set[Point] = set()
        self._found: list[tuple[Budget, Point, Point | None]] = []
        self._run = self._stages()
        self._batch: Batch = next(self._run)

    def ask(self) -> list[Measurement]:
        """Return the next batch, whose measurements do not depend on each other; empty when the search has ended."""
        return list(self._batch)

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Take the outcomes of the last batch, in any order; a ValueError if one is missing."""
        told = {outcome.measurement: outcome for outcome in outcomes}
        if missing := [one for one in self._batch if one not in told]:
            raise ValueError(f"{len(missing)} of {len(self._batch)} outcomes are missing, such as that of {missing[0]}")
        self.outcomes |= told
        for outcome in outcomes:
            point = outcome.measurement.point
            if point is not None and outcome.bits is not None:
                self._bits[point] = outcome.bits
            if point is not None and outcome.result is None:
                self._failed.add(point)
        self._batch = next(self._run, [])

    def bits(self, point: Point) -> int:
        """Return the exact bits of a point: measured ones if there are."""
        return self._bits.get(point, self.space.bits(point))

    def predicted(self) -> Frontier:
        """Return the predicted frontier, whose damages are sums of the model's tables."""
        return frontier(self._fitted.tables(), self.space.sizes, self.space.base_bits)

    def answers(self) -> list[Answer]:
        """Return the answer to every budget, after the last batch. ConfigError if a final cell failed."""
        return [self._answer(*found) for found in self._found]

    def costs(self) -> dict[str, Any]:
        """Return cells, items and processor seconds, in all and by stage, beside the cells of the grid."""
        stages = {}
        for stage in STAGES:
            own = [outcome for one, outcome in self.outcomes.items() if one.stage == stage]
            items = sum(outcome.result.count for outcome in own if outcome.result is not None)
            stages[stage] = {"cells": len(own), "items": items, "seconds": sum(outcome.seconds for outcome in own)}
        total = {key: sum(own[key] for own in stages.values()) for key in ("cells", "items", "seconds")}
        return {**total, "stages": stages, "grid_cells": self.space.count}

    @property
    def _fitted(self) -> DamageModel:
        if self.model is None:
            raise ValueError("the search has not measured its first batch")
        return self.model

    def _stages(self) -> Generator[Batch, None, None]:
        first = FirstBatch(self.space, self.settings)
        yield first.measurements()
        first.refuse_nothing(self.outcomes)
        table = sensitivity.error_table(self.space, self._errors())
        parts = list(dict.fromkeys(axis.part for axis in self.space.axes))
        numbers = [parts.index(axis.part) for axis in self.space.axes]
        exponent = 1.2
        lowered = first.divergences(self.outcomes)
        if lowered:
            table, exponent = sensitivity.with_divergences(table, lowered), 1.1
        self.model = DamageModel(table, numbers, exponent, methods=self.space.methods)
        self._refit()
        contests = [self._contest(budget) for budget in self.budgets]
        for number in range(len(self.settings.rounds)):
            asked = [(own, None if self._decided(own) else own.race.next()) for own in contests]
            batch = self._round_batch([(own, ask) for own, ask in asked if ask is not None])
            if not batch:
                break
            yield batch
            for own, ask in asked:
                if ask is not None:
                    self._tell_race(own, ask)
            self._refit()
            if number + 1 < len(self.settings.rounds):
                for own in contests:
                    self._join(own)
        last = self._last_batch(contests)
        if last:
            yield last
            self._refit()
        self._found = [self._choice(own) for own in contests]
        yield self._final_batch()

    def _refit(self) -> None:
        self._fitted.fit(observations(self.outcomes))

    # Races

    def _contest(self, budget: Budget) -> Contest:
        most = self.settings.candidates + 3 + self.settings.newcomers * (len(self.settings.rounds) - 1)
        given: dict[str, Any] = {"error": self.settings.error, "most": most, "start": self.settings.first}
        if budget.share is None:
            race, points = Race(self.settings.ends, **given), self._entrants(budget)
        else:
            race, points = Threshold(self.settings.ends, share=budget.share, **given), self._levels(budget.share)
        contest = Contest(budget, race, self.bits)
        for point in points:
            contest.add(point)
        return contest

    def _entrants(self, budget: Budget) -> list[Point]:
        """Return the best candidate, those that may gain over it, the allocation by the prior alone, and a uniform point."""
        found = self._candidates(budget)
        worth = [found[0], *self._gaining(found[1:], found[0])] if found else []
        uniform = self._best_uniform(budget)
        return [*worth, *self._by_prior(budget), *([] if uniform is None else [uniform])]

    def _gaining(self, points: Sequence[Point], leader: Point) -> list[Point]:
        """Return those of ``points`` that are expected to gain at least the tolerance over ``leader``."""
        return [point for point in points if self._fitted.gain(point, leader) >= self.settings.tolerance]

    def _levels(self, share: float) -> list[Point]:
        """Return the smallest points that are predicted to keep ``share``, somewhat less and somewhat more; smallest first."""
        predicted = self.predicted()
        kept = np.array([self._fitted.share(damage) for damage in predicted.damages])
        count = self.settings.candidates
        # From half as much lost again to half as much; the prediction may be off by that.
        levels = 1 - (1 - share) * np.linspace(1.5, 0.5, count)
        places = [int(np.argmax(kept >= level)) if (kept >= level).any() else len(kept) - 1 for level in levels]
        found = dict.fromkeys(predicted.points[place] for place in places)
        return [point for point in found if point not in self._failed]

    def _by_prior(self, budget: Budget) -> list[Point]:
        """Return the allocation by the prior alone, which the model may have been misled from; only if axes are many."""
        return self._allocated(self._fitted.corrected_prior, budget, 1) if self.space.finer else []

    def _decided(self, contest: Contest) -> bool:
        """Return True if no running candidate is expected to gain more over the leader than the tolerance."""
        running = contest.running
        if contest.budget.share is not None:
            return not running
        leader = max(running, key=self._fitted.estimate, default=None)
        return leader is None or not self._gaining([point for point in running if point != leader], leader)

    def _candidates(self, budget: Budget) -> list[Point]:
        """Return the points within the budget of least predicted damage; they differ in several axes if there are many."""
        distance = max(1, len(self.space.axes) // 12)
        return self._allocated(self._fitted.tables(), budget, self.settings.candidates, distance)

    def _allocated(self, damages: Sequence[Floats], budget: Budget, count: int, distance: int = 1) -> list[Point]:
        found = ranked(damages, self.space.sizes, budget.bits - self.space.base_bits, count, distance)
        return [point for point, _ in found if self._fits(point, budget)]

    def _fits(self, point: Point, budget: Budget) -> bool:
        return point not in self._failed and self.bits(point) <= budget.bits

    def _best_uniform(self, budget: Budget) -> Point | None:
        inside = [point for point in quantized_uniform(self.space) if self._fits(point, budget)]
        return max(inside, key=self._fitted.estimate, default=None)

    def _round_batch(self, asked: Sequence[tuple[Contest, Round]]) -> Batch:
        found: dict[Measurement, None] = {}
        for contest, ask in asked:
            items = Items(SEARCH, ask.start, ask.stop)
            points: list[Point | None] = [contest.points[name] for name in ask.names]
            points += [] if contest.budget.share is None else [None]
            found |= dict.fromkeys(Measurement(point, items, STAGES[1]) for point in points)
        return list(found)

    def _tell_race(self, contest: Contest, ask: Round) -> None:
        items = Items(SEARCH, ask.start, ask.stop)
        results = {name: self.outcomes[Measurement(contest.points[name], items, "")].result for name in ask.names}
        order = next((result for result in results.values() if result is not None), None)
        for name, result in results.items():
            if result is None:
                contest.race.withdraw(name)
        if contest.budget.share is not None:
            results[Threshold.REFERENCE] = order = self.outcomes[Measurement(None, items, "")].result
        if order is not None:
            contest.race.tell({name: aligned(result, order) for name, result in results.items() if result is not None})

    def _join(self, contest: Contest) -> None:
        """Let the points that the refitted model prefers, and the leader's neighbours, run if it expects more of them."""
        if not contest.running:
            return
        if contest.budget.share is not None:
            for point in self._levels(contest.budget.share):
                if len(contest.running) < self.settings.candidates:
                    contest.add(point)
            return
        leader = max(contest.running, key=self._fitted.estimate)
        pool = [*self._candidates(contest.budget), *self.space.neighbours(leader)]
        known = set(contest.points.values())
        fresh = [point for point in dict.fromkeys(pool) if point not in known and self._fits(point, contest.budget)]
        expected = sorted(fresh, key=self._fitted.relative, reverse=True)[: self.settings.newcomers]
        for point in self._gaining(expected, leader):
            contest.add(point)

    def _last_batch(self, contests: Sequence[Contest]) -> Batch:
        """Ask for the two best of every race that is not decided, on the items that are left."""
        start = self.settings.ends[-1]
        if not self.settings.last:
            return []
        items = Items(SEARCH, start, start + self.settings.last)
        found: dict[Measurement, None] = {}
        for contest in contests:
            if contest.budget.share is not None:
                continue
            best = sorted(contest.running, key=self._fitted.estimate, reverse=True)[:2]
            if len(best) > 1 and not self._decided(contest):
                found |= dict.fromkeys(Measurement(point, items, STAGES[2]) for point in best)
        return list(found)

    # Answers

    def _choice(self, contest: Contest) -> tuple[Budget, Point, Point | None]:
        running = [point for point in contest.running if self._fits(point, contest.budget)]
        if not running:
            raise ConfigError(
                f"hydra.sweeper.{contest.budget.text}: every candidate failed; their records have the errors."
            )
        share = contest.budget.share
        if share is None:
            return contest.budget, max(running, key=self._fitted.estimate), self._best_uniform(contest.budget)
        known = [*running, *quantized_uniform(self.space)]
        keeping = [
            point for point in known if self._fits(point, contest.budget) and self._fitted.estimate(point) >= share
        ]
        best = min(keeping, key=self.bits, default=max(known, key=self._fitted.estimate))
        uniform = [point for point in quantized_uniform(self.space) if point in keeping]
        return contest.budget, best, min(uniform, key=self.bits, default=None)

    def _final_batch(self) -> Batch:
        points: list[Point | None] = [None]
        for _, point, uniform in self._found:
            points += [point] if uniform is None else [point, uniform]
        return [Measurement(point, Items(self.settings.final), STAGES[3]) for point in dict.fromkeys(points)]

    def _answer(self, budget: Budget, point: Point, uniform: Point | None) -> Answer:
        full, quality = self._final(None), self._final(point)
        return Answer(
            budget,
            point,
            self.bits(point),
            self.bits(point) / self.space.parameters,
            quality,
            uniform,
            None if uniform is None else paired_difference(self._final(uniform), quality),
            paired_difference(full, quality),
            paired_share(full, quality),
            self._fitted.estimate(point),
            self.settings.optimistic,
            budget.share is None or self._fitted.estimate(point) >= budget.share,
        )

    def _final(self, point: Point | None) -> MetricResult:
        outcome = self.outcomes[Measurement(point, Items(self.settings.final), "")]
        if outcome.result is None:
            raise ConfigError(f"the search: the final cell {outcome.cell} failed; its record has the error.")
        return outcome.result
