"""POPE (arXiv 2305.10355): does a model see objects that are not there? Yes and no are right equally often.

As the authors' ``evaluate.py``: an answer is no if ``No``, ``no`` or ``not`` is among the words of its first sentence, and else
yes, whatever it says. Yes is the positive answer of precision, recall and F1. The score of an item is whether it is right, but
for ``pope_yes_ratio``, where it is whether the answer is yes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from mmq_sweeps.metrics.base import Count, Floats, MetricBase, Scores, share
from mmq_sweeps.metrics.degenerate import of_neither

NO = frozenset(["No", "no", "not"])
Flags = NDArray[np.bool_]


class PopeAccuracy(MetricBase):
    """Share of right answers."""

    name: ClassVar[str] = "pope_accuracy"
    needs: ClassVar[str] = "answers"

    def problem_of(self, answers: Sequence[str], options: Sequence[str], kind: str) -> str | None:  # noqa: ARG002
        """Return why a question cannot be scored: its right answer must be yes or no."""
        return problem_of_yes_no(answers)

    def prepare(self, references: Mapping[str, Sequence[str]]) -> Flags:
        """Return which questions have yes for the right answer."""
        return np.array([yes_or_no(answers[0]) == "yes" for answers in references.values()])

    def score(self, prepared: Flags, predictions: Sequence[str]) -> Scores:
        """Score each answer 1 or 0, in the order of the questions."""
        said = np.array([says_yes(answer) for answer in predictions])
        right = (said == prepared).astype(np.float64)
        totals = self._totals(said, prepared)
        value = float(self.aggregate(totals.sum(axis=0, keepdims=True), len(right))[0]) if len(right) else float("nan")
        neither = sum(not _says_either(answer) for answer in predictions)
        return Scores(value, self._per_item(said, right), totals, of_neither(neither, len(right), "count as yes"))

    def _per_item(self, said: Flags, right: Floats) -> Floats:  # noqa: ARG002
        return right

    def _totals(self, said: Flags, wanted: Flags) -> Floats:
        """Return the counts of each item behind the figure, ``[N, S]``."""
        return (said == wanted).astype(np.float64)[:, None]


class PopePrecision(PopeAccuracy):
    """Share of the answers yes that are right; 0 if there is none."""

    name: ClassVar[str] = "pope_precision"

    def aggregate(self, totals: Floats, count: Count) -> Floats:  # noqa: ARG002 (part of a metric)
        """Return right answers yes over the mean of the other columns."""
        others = totals[:, 1:]
        return share(others.shape[1] * totals[:, 0], others.sum(axis=1))

    def _totals(self, said: Flags, wanted: Flags) -> Floats:
        return np.stack([said & wanted, said], axis=1).astype(np.float64)


class PopeRecall(PopePrecision):
    """Share of the questions whose right answer is yes that are answered so."""

    name: ClassVar[str] = "pope_recall"

    def _totals(self, said: Flags, wanted: Flags) -> Floats:
        return np.stack([said & wanted, wanted], axis=1).astype(np.float64)


class PopeF1(PopePrecision):
    """Harmonic mean of precision and recall."""

    name: ClassVar[str] = "pope_f1"

    def _totals(self, said: Flags, wanted: Flags) -> Floats:
        return np.stack([said & wanted, said, wanted], axis=1).astype(np.float64)


class PopeYesRatio(PopeAccuracy):
    """Share of answers yes: neither more nor fewer are better, and half of them would be if all were right."""

    name: ClassVar[str] = "pope_yes_ratio"

    def _per_item(self, said: Flags, right: Floats) -> Floats:  # noqa: ARG002
        return said.astype(np.float64)

    def _totals(self, said: Flags, wanted: Flags) -> Floats:  # noqa: ARG002
        return said.astype(np.float64)[:, None]


def problem_of_yes_no(answers: Sequence[str]) -> str | None:
    """Return why ``answers`` are no right answer to a question of yes or no, or None."""
    if len(answers) == 1 and yes_or_no(answers[0]) in ("yes", "no"):
        return None
    return f"its right answer is {', '.join(map(repr, answers))}, which is neither yes nor no"


def yes_or_no(right: str) -> str:
    """Return a right answer as ``yes`` or ``no``; anything else as it is."""
    return right.lower().strip().removesuffix(".")


def says_yes(answer: str) -> bool:
    """Return whether the authors' script takes ``answer`` for yes."""
    return not NO.intersection(answer.partition(".")[0].replace(",", "").split(" "))


def _says_either(answer: str) -> bool:
    return not says_yes(answer) or "yes" in answer.lower()
