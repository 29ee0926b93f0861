"""Interface of a metric: name, required inputs, direction, per-item scores, and aggregation of items into a figure.

A metric that is not the mean of its per-item scores (BLEU, METEOR, recall over both directions) returns ``totals``: a
row of counts per item. ``aggregate`` turns the sum of any items' rows into the figure of those items, which is all the
bootstrap needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Scores of one cell: ``value``, ``per_item`` ``[N]`` and ``totals`` ``[N, S]``.

    ``warnings`` are short sentences with numbers on why the figure means less than it seems.
    """

    value: float
    per_item: Floats
    totals: Floats
    warnings: tuple[str, ...] = ()

    @staticmethod
    def mean(per_item: Floats, warnings: tuple[str, ...] = ()) -> Scores:
        """Return the scores of a metric that is the mean of its items."""
        value = float(np.mean(per_item)) if len(per_item) else float("nan")
        return Scores(value, per_item, per_item[:, None], warnings)


class Metric(Protocol):
    """Interface of a metric, one file each; see docs/scoring.md for a complete example.

    ``needs`` selects the input of ``prepare`` and ``score``: ``captions`` (tokenized), ``answers``, ``confidences`` or
    ``ranks``. If several published scripts share the metric's name, its ``definition: str`` names the script that it equals.

    A metric that depends on the order of its items has ``figures(totals [N, S], counts [B, N])`` in place of ``aggregate``:
    the figures ``[B]`` of draws that hold each item so many times.
    """

    name: ClassVar[str]
    needs: ClassVar[str]
    higher_is_better: ClassVar[bool]

    def prepare(self, references: Any) -> Any:
        """Compute results that depend only on the task's references; ``score`` gets them for every cell."""
        ...

    def score(self, prepared: Any, predictions: Any) -> Scores:
        """Return the scores of one cell, items in the order of the references."""
        ...

    def aggregate(self, totals: Floats, count: int) -> Floats:
        """Return the figures ``[B]`` of ``B`` sets of ``count`` items, from the sums ``[B, S]`` of their ``totals``."""
        ...


def mean_of_totals(totals: Floats, count: int) -> Floats:
    """Aggregate a metric that is the mean of its items."""
    result: Floats = totals[:, 0] / count
    return result


def require(metric: Metric, needs: str, scorer: str, also: str = "") -> None:
    """Raise ValueError if ``metric`` cannot be computed from ``scorer``'s data."""
    if metric.needs not in (needs, also):
        raise ValueError(f"Metric {metric.name!r} needs {metric.needs}; {scorer} has {needs}")
