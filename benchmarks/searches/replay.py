"""Answer searches from the predictions of grids."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.searches.grids import Grid, compared, grid_of
from benchmarks.searches.subjects import POOL_SEED, Subject, bits_of
from benchmarks.searches.workshop import Silent, Workshop
from mmq_sweeps.metrics.intervals import result_of
from mmq_sweeps.metrics.result import MetricResult
from mmq_sweeps.search.loop import Search
from mmq_sweeps.search.measuring import Measurement, Outcome
from mmq_sweeps.search.settings import Settings
from mmq_sweeps.search.space import Budget, Space


@dataclass
class Replay:
    """Answers measurements of a search by part from the predictions of two grids."""

    subject: Subject
    space: Space
    errors: Any
    grid: Grid
    pool: Grid
    _scores: dict[Any, MetricResult] = field(default_factory=dict)

    @cached_property
    def references(self) -> dict[str, tuple[str, ...]]:
        from mmq_sweeps.data.scenes import Scenes

        examples = Scenes(split="calibration", count=self.subject.pool, seed=POOL_SEED)
        return {example.id: tuple(example.references) for example in examples}

    def run(self, seed: int) -> tuple[Search, list[dict[str, Any]]]:
        """Run a search; return it, and for every budget how its answer compares with the grid's best cell."""
        budgets = [Budget.of_bpw(own, self.space) for own in self.subject.budgets]
        settings = Settings(self.subject.metric, seed).within(len(next(iter(self.pool.results.values())).per_item))
        search = Search(self.space, budgets, settings, lambda: self.errors)
        while batch := search.ask():
            search.tell([self._outcome(seed, one) for one in batch])
        return search, [self._compared(answer) for answer in search.answers()]

    def _compared(self, answer: Any) -> dict[str, Any]:
        return compared(self.grid, bits_of(self.space, answer.point, self.subject.parts), answer.budget)

    def _outcome(self, seed: int, one: Measurement) -> Outcome:
        key = bits_of(self.space, one.point, self.subject.parts)
        if one.items.split != "search":
            return Outcome(one, self.grid.results[key], self.grid.bits[key])
        ids = list(self.pool.results[key].per_item)
        order = np.random.Generator(np.random.PCG64(seed)).permutation(len(ids))
        chosen = tuple(ids[place] for place in order[one.items.start : one.items.stop])
        return Outcome(one, self._result(key, chosen), self.grid.bits[key])

    def _result(self, key: tuple[int, ...], chosen: tuple[str, ...]) -> MetricResult:
        if self.subject.metric == "cider":
            return self._captioned(key, chosen)
        from mmq_sweeps.metrics.base import Scores
        from mmq_sweeps.metrics.names import load_metric

        scores = np.array([self.pool.results[key].per_item[item] for item in chosen])
        return result_of(load_metric(self.subject.metric), chosen, Scores.mean(scores))

    def _captioned(self, key: tuple[int, ...], chosen: tuple[str, ...]) -> MetricResult:
        """Score anew: the weight of an n-gram depends on the references of all items."""
        from mmq_sweeps.metrics import CaptionScorer

        if chosen not in self._scores:
            self._scores[chosen] = CaptionScorer({item: list(self.references[item]) for item in chosen})  # type: ignore
        scorer: Any = self._scores[chosen]
        return scorer.score({item: self.pool.predictions[key][item] for item in chosen})["cider"]  # type: ignore


def replay_of(subject: Subject, folder: Path) -> Replay:
    """Read the grids, and the space and errors of units, which are solved once."""
    kept = folder / f"{subject.name}_space.pickle"
    if not kept.is_file():
        workshop = Workshop(subject, folder / f"errors_{subject.name}")
        space = workshop.space("part")
        for point in space.uniform():
            if bits_of(space, point, subject.parts) != (16,) * len(subject.parts):
                content = space.content(point)
                cell, session, needed = workshop.requests(content)
                session.quantize(cell, Silent())
                workshop._keys[point] = {request.unit.name: request.key for request in needed}
        kept.write_bytes(pickle.dumps((space, workshop.errors(space))))
    space, errors = pickle.loads(kept.read_bytes())  # noqa: S301 - our own file
    return Replay(subject, space, errors, grid_of(subject, folder, False), grid_of(subject, folder, True))
