"""The measurements that a search asks for, their outcomes, and its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmq_sweeps.metrics.intervals import PairedDifference
from mmq_sweeps.metrics.result import MetricResult
from mmq_sweeps.search.space import Budget, Point

STAGES = ("sensitivity", "race", "all items", "final")
SEARCH, EVALUATION = "search", "evaluation"
LIKELIHOOD = "log_likelihood"
# A share of full precision's score that is as good as nothing.
NOTHING = 0.01


@dataclass(frozen=True)
class Items:
    """The items of a measurement.

    ``split`` is ``search`` or ``evaluation``. On ``search``, those from ``start`` to before ``stop`` of the order that the
    search's seed draws: the field ``sample`` of the task (``{seed, start, stop}``). On ``evaluation``, all of the task's own.
    With ``teacher_forced`` they are asked for the likelihood of their right texts (``task.teacher_forced=true
    task.metrics=[log_likelihood]``).
    """

    split: str = EVALUATION
    start: int = 0
    stop: int | None = None
    teacher_forced: bool = False

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
    """A measured cell. ``cell`` is its id; ``bits`` its exact size, None if unknown; ``seconds`` its processor time.

    ``result`` is the search's metric on the measurement's items, None if the cell failed. ``predictions`` by item are needed
    of teacher-forced measurements only.
    """

    measurement: Measurement
    result: MetricResult | None
    bits: int | None = None
    seconds: float = 0.0
    cell: str = ""
    predictions: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Answer:
    """The answer to one budget.

    ``quality`` is the metric on the final items; ``from_uniform`` and ``from_full`` are paired differences of ``quality`` from
    the best uniform point within the budget (None if there is none) and from full precision; ``kept`` is its share of full
    precision, with interval. ``predicted`` is the share that the search expected of the point. ``reached`` is False if no
    point is expected to keep a ``min_quality``, for which ``uniform`` is the smallest that is.
    """

    budget: Budget
    point: Point
    bits: int
    bpw: float
    quality: MetricResult
    uniform: Point | None
    from_uniform: PairedDifference | None
    from_full: PairedDifference
    kept: tuple[float, tuple[float, float]]
    predicted: float
    optimistic: bool
    reached: bool = True


def count_of_items(count: int) -> str:
    """Format a number of items."""
    return "1 item" if count == 1 else f"{count} items"
