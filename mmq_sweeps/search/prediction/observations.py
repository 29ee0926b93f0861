"""Observations for the damage model: the means of the measured cells, and how sure each is of its share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mmq_sweeps.metrics.result import MetricResult
from mmq_sweeps.search.measuring import SEARCH, Items, Measurement, Outcome
from mmq_sweeps.search.prediction.model import Observation
from mmq_sweeps.search.space import Point

Floats = NDArray[np.float64]


def observations(outcomes: Mapping[Measurement, Outcome]) -> list[Observation]:
    """Return the mean of every cell of the search's items; its variance is that of its ratio to one reference's."""
    sets: dict[Items, dict[Point | None, MetricResult]] = {}
    for one, outcome in outcomes.items():
        if one.items.split == SEARCH and not one.items.teacher_forced and outcome.result is not None:
            sets.setdefault(one.items, {})[one.point] = outcome.result
    found = []
    for number, own in enumerate(sets.values()):
        reference = own[None] if None in own else max(own.values(), key=lambda result: result.value)
        for point, result in own.items():
            scores, others = aligned(result, reference), aligned(reference, reference)
            mean, other = float(scores.mean()), float(others.mean())
            # Of a bad point hardly anything is left of the reference's ups and downs.
            rest = scores - (mean / other if other else 1.0) * others
            spread = float(rest.var(ddof=1)) / len(rest) if len(rest) > 1 else result.value**2
            found.append(Observation(point, number, mean, spread))
    return found


def aligned(result: MetricResult, order: MetricResult) -> Floats:
    """Return the scores of ``result`` in the order of the items of ``order``."""
    return np.array([result.per_item[item] for item in order.per_item], dtype=np.float64)
