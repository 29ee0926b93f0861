"""Interface of a metric: name, required inputs, direction, per-item scores, and aggregation of items into a figure.

A metric that is not the mean of its per-item scores (BLEU, METEOR, recall over both directions) returns ``totals``: a
row of counts per item. ``aggregate`` turns the sum of any items' rows into the figure of those items, which is all the
bootstrap needs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# How many items a figure is of; of draws of groups of unequal size, of each draw ``[B]``.
Count = int | Floats


class RightAnswers(dict[str, Sequence[str]]):
    """Right answers by question id, and further facts that some metrics need, by id.

    ``options`` are those of a choice, ``kinds`` the kind of each question, ``groups`` what it shares with other questions,
    such as the picture. Questions without them are left out of each.
    """

    def __init__(
        self,
        answers: Mapping[str, Sequence[str]],
        options: Mapping[str, Sequence[str]] | None = None,
        kinds: Mapping[str, str] | None = None,
        groups: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(answers)
        self.options, self.kinds, self.groups = options or {}, kinds or {}, groups or {}

    @staticmethod
    def of(answers: Mapping[str, Sequence[str]]) -> RightAnswers:
        """Return ``answers`` themselves if they know all of this, else with nothing but the answers."""
        return answers if isinstance(answers, RightAnswers) else RightAnswers(answers)

    def choices(self) -> list[Sequence[str]]:
        """Return the options of each question, in the order of the questions."""
        return [self.options.get(question, ()) for question in self]


@dataclass(frozen=True)
class Scores:
    """Scores of one cell: ``value``, ``per_item`` ``[N]`` and ``totals`` ``[N, S]``.

    ``warnings`` are short sentences with numbers on why the figure means less than it seems. ``places`` are those of the items
    that the metric is about, if it is not about all.
    """

    value: float
    per_item: Floats
    totals: Floats
    warnings: tuple[str, ...] = ()
    places: NDArray[np.intp] | None = None

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

    A metric of answers may have ``problem_of(answers, options, kind)``: why it cannot score a question with these right
    answers, or None.
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

    def aggregate(self, totals: Floats, count: Count) -> Floats:
        """Return the figures ``[B]`` of ``B`` sets of ``count`` items, from the sums ``[B, S]`` of their ``totals``.

        Of sets of unequal size, ``count`` holds the size of each.
        """
        ...


def mean_of_totals(totals: Floats, count: Count) -> Floats:
    """Aggregate a metric that is the mean of its items."""
    result: Floats = totals[:, 0] / count
    return result


class MetricBase:
    """Base of most metrics: higher is better, the references need no preparation, the figure is the mean of the items."""

    higher_is_better: ClassVar[bool] = True

    def prepare(self, references: Any) -> Any:
        """Return None: nothing depends on the references alone."""

    def aggregate(self, totals: Floats, count: Count) -> Floats:
        """Average over the items."""
        return mean_of_totals(totals, count)


class AnswerMetric(MetricBase, ABC):
    """Base of metrics of answers that are the mean of a score per answer."""

    needs: ClassVar[str] = "answers"

    def prepare(self, references: Mapping[str, Sequence[str]]) -> Sequence[Any]:
        """Return the right answers of each question, as ``score_of`` takes them."""
        return list(references.values())

    def score(self, prepared: Sequence[Any], predictions: Sequence[str]) -> Scores:
        """Score each answer, in the order of the questions."""
        pairs = zip(predictions, prepared, strict=True)
        return Scores.mean(np.array([self.score_of(answer, right) for answer, right in pairs], dtype=np.float64))

    @abstractmethod
    def score_of(self, answer: str, right: Any) -> float:
        """Score an answer, given the element of ``prepare`` for its question."""


def share(part: Floats, whole: Floats) -> Floats:
    """Return ``part / whole``, 0 where both are none."""
    found: Floats = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return found
