"""Relaxed accuracy of ChartQA (arXiv 2203.10244, section 5.1): numbers within 5% are right, other texts if they are equal.

As ``relaxed_correctness`` of pix2struct, by which models are reported: a percentage is a hundredth of its number; case does not
count; a right answer of 0, and numbers written otherwise than Python reads them (``1,000``), are compared as texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from mmq_sweeps.metrics.base import AnswerMetric

TOLERANCE = 0.05


class RelaxedAccuracy(AnswerMetric):
    """1 if the answer is near enough to one of the right answers, else 0."""

    name: ClassVar[str] = "relaxed_accuracy"

    def score_of(self, answer: str, right: Sequence[str]) -> float:
        """Return 1 or 0."""
        return any(is_near(answer, text) for text in right)


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
