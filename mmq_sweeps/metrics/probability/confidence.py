"""How well a model knows which of its answers are right, given the probability that it gave each of them.

Confidence is the probability of the whole answer, up to and with its end. ``ece`` compares it with the share of right
answers; ``aurc`` asks whether wrong answers would be the first to be withheld. Both as in arXiv 2602.13289's study of
quantized models on visual questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from mmq_sweeps.metrics.base import Count, Floats, MetricBase, Scores

BINS = 15


@dataclass(frozen=True)
class Confident:
    """How ``right`` each answer is, from 0 to 1, and how confident the model was of it, both ``[N]``."""

    right: Floats
    confidence: Floats


def confidences(items: Sequence[str], answers: Mapping[str, str]) -> Floats:
    """Return the probability of each item's answer; 0 if its logits were no numbers.

    Raises ValueError if ``answers`` do not have ``log_probabilities`` of all items.
    """
    told: Mapping[str, tuple[float, int]] = getattr(answers, "log_probabilities", {})
    if lacking := [item for item in items if item not in told]:
        raise ValueError(f"{len(lacking)} of {len(items)} answers have no log-probability, for example {lacking[0]!r}")
    found: Floats = np.nan_to_num(np.exp([told[item][0] for item in items]), nan=0.0)
    return np.minimum(found, 1.0)


class Ece(MetricBase):
    """Expected calibration error: the mean distance of confidence from accuracy over bins of confidence.

    As Guo et al. (arXiv 1706.04599) and torchmetrics: ``BINS`` bins of equal width, each weighted by its items. The score of
    an item is the distance of its own confidence from how right it is.
    """

    name: ClassVar[str] = "ece"
    needs: ClassVar[str] = "confidences"
    higher_is_better: ClassVar[bool] = False
    definition: ClassVar[str] = f"{BINS} bins of equal width, probability of the whole answer"

    def score(self, prepared: None, predictions: Confident) -> Scores:  # noqa: ARG002 (part of a metric)
        """Score each answer; ``totals`` hold its accuracy less its confidence, in the column of its bin."""
        gap = predictions.right - predictions.confidence
        totals = np.zeros((len(gap), BINS))
        # As torchmetrics: a bin begins at its lower edge, and the last one holds 1.
        place = np.searchsorted(np.linspace(0, 1, BINS + 1), predictions.confidence, side="right") - 1
        totals[np.arange(len(gap)), np.minimum(place, BINS - 1)] = gap
        value = float(self.aggregate(totals.sum(axis=0, keepdims=True), len(gap))[0]) if len(gap) else float("nan")
        return Scores(value, np.abs(gap), totals)

    def aggregate(self, totals: Floats, count: Count) -> Floats:
        """Return the error: the bins' absolute sums over the number of items."""
        figure: Floats = np.abs(totals).sum(axis=1) / count
        return figure


class Aurc(MetricBase):
    """Area under the risk-coverage curve: the share of wrong answers among the most confident, over how many are kept.

    Geifman and El-Yaniv (arXiv 1705.08500): the mean of the risk of the k most confident answers over all k. Among equally
    confident answers the wrong ones come first. The score of an item is its error.
    """

    name: ClassVar[str] = "aurc"
    needs: ClassVar[str] = "confidences"
    higher_is_better: ClassVar[bool] = False
    definition: ClassVar[str] = "mean risk over all coverages, probability of the whole answer"

    def score(self, prepared: None, predictions: Confident) -> Scores:  # noqa: ARG002 (part of a metric)
        """Score each answer; ``totals`` hold its confidence and its error, which ``figures`` reads."""
        error = 1 - predictions.right
        totals = np.column_stack([predictions.confidence, error])
        value = float(self.figures(totals, np.ones((1, len(error))))[0]) if len(error) else float("nan")
        return Scores(value, error, totals)

    def aggregate(self, totals: Floats, count: Count) -> Floats:
        """Refuse: the order of the items is lost in a sum; use ``figures``."""
        raise NotImplementedError(f"{self.name} is no function of sums over items")

    def figures(self, totals: Floats, counts: Floats) -> Floats:
        """Return the area ``[B]`` of draws that hold each item ``counts`` ``[B, N]`` times."""
        confidence, error = totals.T
        order = np.lexsort((-error, -confidence))
        counts, error = counts[:, order], error[order]
        seen = counts.cumsum(axis=1).astype(np.int64)
        wrong = (counts * error).cumsum(axis=1)
        before, wrong_before = seen - counts.astype(np.int64), wrong - counts * error
        # An item's copies follow each other: the risk of the first k is error + (wrong before - error * before) / k.
        harmonic = np.concatenate([[0.0], (1 / np.arange(1, seen[:, -1].max() + 1)).cumsum()])
        areas = counts * error + (wrong_before - error * before) * (harmonic[seen] - harmonic[before])
        figure: Floats = areas.sum(axis=1) / seen[:, -1]
        return figure


def risk_coverage(totals: Sequence[Any]) -> tuple[Floats, Floats]:
    """Return coverage and risk ``[N]`` of answers with the ``totals`` of ``Aurc``: confidence and error of each."""
    confidence, error = np.asarray(totals, dtype=np.float64).T
    kept = np.arange(1, len(error) + 1)
    risk: Floats = error[np.lexsort((-error, -confidence))].cumsum() / kept
    coverage: Floats = kept / len(error)
    return coverage, risk
