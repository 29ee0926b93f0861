"""The loop of a search as a state machine: it asks for batches of measurements and is told their outcomes.

It keeps no file and draws nothing at random but from its seed: a search that is started again asks for the same
measurements, which the store then has. A driver runs::

    search = Search(space, budgets, settings, errors)
    while batch := search.ask():
        search.tell([measure(one) for one in batch])     # cells of the store, in any order, in parallel if it likes
    answers = search.answers()
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmq_sweeps.metrics.result import MetricResult
from mmq_sweeps.search.space import Budget, Point, Space

STAGES = ("sensitivity", "race", "all items", "final")


@dataclass(frozen=True)
class Items:
    """The items of a measurement.

    ``split`` is ``search`` or ``evaluation``. On ``search``, those from ``start`` to before ``stop`` of the order that the
    search's seed draws: the field ``sample`` of the task (``{seed, start, stop}``). On ``evaluation``, all of the task's own.
    """

    split: str = "evaluation"
    start: int = 0
    stop: int | None = None

    @property
    def count(self) -> int | None:
        """Number of items; None for all."""
        return None if self.stop is None else self.stop - self.start


@dataclass(frozen=True)
class Measurement:
    """A cell to measure: a point, or full precision with None, on some items. ``stage`` is one of ``STAGES``."""

    point: Point | None
    items: Items
    stage: str = field(compare=False)


@dataclass(frozen=True)
class Outcome:
    """What a measured cell gave. ``cell`` is its id; ``bits`` its exact size, None if unknown; ``seconds`` its processor time.

    ``result`` is the search's metric on the measurement's items, None if the cell failed.
    """

    measurement: Measurement
    result: MetricResult | None
    bits: int | None = None
    seconds: float = 0.0
    cell: str = ""


@dataclass(frozen=True)
class Settings:
    """Settings of a search.

    Args:
        metric: name of the metric that is kept high.
        seed: draws the order of the search's items.
        items: how many items of the search split there are at most.
        error: bound on the probability that a race drops its best candidate.
        candidates: how many candidates of each budget race.
    """

    metric: str
    seed: int = 0
    items: int = 256
    error: float = 0.05
    candidates: int = 8


@dataclass(frozen=True)
class Answer:
    """The answer to one budget.

    ``quality`` is the metric on the final items; ``from_uniform`` and ``from_full`` are paired differences from the best
    uniform point within the budget (None if there is none) and from full precision. ``reached`` is False if no measured
    point keeps a ``min_quality``.
    """

    budget: Budget
    point: Point
    bits: int
    bpw: float
    quality: MetricResult
    uniform: Point | None
    from_uniform: Any
    from_full: Any
    predicted: float
    optimistic: bool
    reached: bool
    notes: tuple[str, ...] = ()


class Search:
    """A search of ``space`` for the points of best quality within ``budgets``; see the module."""

    def __init__(
        self,
        space: Space,
        budgets: Sequence[Budget],
        settings: Settings,
        errors: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """``errors`` has the output error of every axis and option, as ``sensitivity.output_errors`` reads it."""

    def ask(self) -> list[Measurement]:
        """Return the next batch, whose measurements do not depend on each other; empty when the search has ended."""
        raise NotImplementedError

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Take the outcomes of the last batch."""
        raise NotImplementedError

    def answers(self) -> list[Answer]:
        """Return the answer to every budget, after the last batch."""
        raise NotImplementedError

    def costs(self) -> Mapping[str, Any]:
        """Return cells, items and processor seconds by stage, beside what the grid would have cost in items."""
        raise NotImplementedError
