"""Relaxed accuracy of ChartQA (arXiv 2203.10244, section 5.1): numbers within 5% are right, other texts if they are equal.

As ``relaxed_correctness`` of pix2struct, by which models are reported: a percentage is a hundredth of its number; case does not
count; a right answer of 0, and numbers written otherwise than Python reads them (``1,000``), are compared as texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from mmq_sweeps.metrics.base import Count, Floats, Scores, mean_of_totals

TOLERANCE = 0.05


class RelaxedAccuracy:
    """1 if the answer is near enough to one of the right answers, else 0."""

    name: ClassVar[str] = "relaxed_accuracy"
    needs: ClassVar[str] = "answers"
    higher_is_better: ClassVar[bool] = True

    def prepare(self, references: Mapping[str, Sequence[str]]) -> list[Sequence[str]]:
        """Return the right answers in the order of the questions."""
        return list(references.values())

    def score(self, prepared: list[Sequence[str]], predictions: Sequence[str]) -> Scores:
        """Score each answer 1 or 0, in the order of the questions."""
        pairs = zip(predictions, prepared, strict=True)
        return Scores.mean(np.array([float(any(is_near(answer, text) for text in right)) for answer, right in pairs]))

    def aggregate(self, totals: Floats, count: Count) -> Floats:
        """Average over questions."""
        return mean_of_totals(totals, count)


def is_near(answer: str, right: str) -> bool:
    """Return whether ``answer`` is right: as a number within ``TOLERANCE`` of ``right``, else as the same text."""
    number, wanted = _number(answer), _number(right)
    if number is None or not wanted:
        return answer.lower() == right.lower()
    return abs(number - wanted) / abs(wanted) <= TOLERANCE


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
