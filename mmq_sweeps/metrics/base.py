"""What a metric is: a name, what it needs, which way is better, per-item scores, and how items make one figure.

A metric that is not the mean of its per-item scores (BLEU, METEOR, recall over both directions) returns ``totals``: one
row of counts an item, of which the sum over any items gives the figure of those items through ``aggregate``. That is
all the bootstrap needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """What a metric makes of one cell: ``value``, ``per_item`` ``[N]`` and ``totals`` ``[N, S]``.

    ``warnings`` say what makes the figure mean less than it seems, in short sentences with numbers.
    """

    value: float
    per_item: Floats
    totals: Floats
    warnings: tuple[str, ...] = ()

    @staticmethod
    def mean(per_item: Floats, warnings: tuple[str, ...] = ()) -> Scores:
        """A metric that is the mean of its items."""
        value = float(np.mean(per_item)) if len(per_item) else float("nan")
        return Scores(value, per_item, per_item[:, None], warnings)


class Metric(Protocol):
    """One file a metric; see docs/scoring.md for one written from scratch.

    ``needs`` says what ``prepare`` and ``score`` are given: ``captions`` (tokenized), ``answers`` or ``ranks``. A metric
    that goes by the name of several published scripts has a ``definition: str`` that says which it equals.
    """

    name: ClassVar[str]
    needs: ClassVar[str]
    higher_is_better: ClassVar[bool]

    def prepare(self, references: Any) -> Any:
        """What the metric computes once from a task's references; ``score`` gets it back for every cell."""
        ...

    def score(self, prepared: Any, predictions: Any) -> Scores:
        """Scores of one cell, items in the order of the references."""
        ...

    def aggregate(self, totals: Floats, count: int) -> Floats:
        """Figures ``[B]`` of ``B`` sets of ``count`` items each, from the sums ``[B, S]`` of their ``totals``."""
        ...


def mean_of_totals(totals: Floats, count: int) -> Floats:
    """``aggregate`` of a metric that is the mean of its items."""
    result: Floats = totals[:, 0] / count
    return result


def require(metric: Metric, needs: str, scorer: str) -> None:
    """Raise ValueError if ``metric`` cannot be computed from what ``scorer`` has."""
    if metric.needs != needs:
        raise ValueError(f"Metric {metric.name!r} needs {metric.needs}; {scorer} has {needs}")
