"""GQA accuracy (Hudson and Manning, arXiv 1902.09506): exact match, both sides normalized as for VQA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from mmq_sweeps.metrics.answers.normalize import normalize_answer
from mmq_sweeps.metrics.base import AnswerMetric


class GqaAccuracy(AnswerMetric):
    """Accuracy: 1 if the normalized answer is one of the normalized right answers, else 0."""

    name: ClassVar[str] = "gqa_accuracy"

    def prepare(self, references: Mapping[str, Sequence[str]]) -> list[frozenset[str]]:
        """Normalize the right answers."""
        return [frozenset(map(normalize_answer, answers)) for answers in references.values()]

    def score_of(self, answer: str, right: frozenset[str]) -> float:
        """Return 1 or 0."""
        return normalize_answer(answer) in right
