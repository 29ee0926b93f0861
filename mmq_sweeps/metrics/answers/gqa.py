"""GQA accuracy (Hudson and Manning, arXiv 1902.09506): exact match, both sides normalized as for VQA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np

from mmq_sweeps.metrics.answers.normalize import normalize_answer
from mmq_sweeps.metrics.base import Count, Floats, Scores, mean_of_totals


class GqaAccuracy:
    """Accuracy: 1 if the normalized answer is one of the normalized right answers, else 0."""

    name: ClassVar[str] = "gqa_accuracy"
    needs: ClassVar[str] = "answers"
    higher_is_better: ClassVar[bool] = True

    def prepare(self, references: Mapping[str, Sequence[str]]) -> list[frozenset[str]]:
        """Normalize the right answers."""
        return [frozenset(map(normalize_answer, answers)) for answers in references.values()]

    def score(self, prepared: list[frozenset[str]], predictions: Sequence[str]) -> Scores:
        """Score each answer 1 or 0, in the order of the questions."""
        pairs = zip(predictions, prepared, strict=True)
        return Scores.mean(np.array([float(normalize_answer(answer) in right) for answer, right in pairs]))

    def aggregate(self, totals: Floats, count: Count) -> Floats:
        """Average over questions."""
        return mean_of_totals(totals, count)
